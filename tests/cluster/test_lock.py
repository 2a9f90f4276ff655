"""A lock is of whichever file has the name, not of one that was taken away meanwhile."""

import fcntl
import os
from pathlib import Path

import pytest

from cluster.lock import is_locked, lock, lock_shared


def test_some_share_what_nobody_has_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = [lock_shared(path), lock_shared(path)]
    assert lock(path) is None
    for each in held:
        assert each is not None
        os.close(each)
    alone = lock(path)
    assert alone is not None
    assert is_locked(path)
    os.close(alone)
    assert not is_locked(path)


def test_where_its_directory_is_gone_nothing_is_shared(tmp_path: Path) -> None:
    assert lock_shared(tmp_path / "gone" / "lock") is None


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_a_file_that_lost_its_name_while_it_was_waited_for_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_made_anew: bool
) -> None:
    path, waits = tmp_path / "lock", fcntl.flock
    before = len(os.listdir("/proc/self/fd"))

    def flock(descriptor: int, operation: int) -> None:
        path.unlink()  # by whoever had it alone
        if is_made_anew:
            path.touch()
        waits(descriptor, operation)

    monkeypatch.setattr("cluster.lock.fcntl.flock", flock)
    assert lock_shared(path) is None
    assert len(os.listdir("/proc/self/fd")) == before
