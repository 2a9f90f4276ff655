"""Logs stay after the end of their cluster, and never without bound."""

import os
import shutil
from pathlib import Path

import pytest

from cluster.lock import lock_shared
from deploy import log_dir as module
from deploy.log_dir import is_written, join_log_dir, log_dirs, open_log_dir


def ended(root: Path, day: int, num_bytes: int = 10) -> Path:
    path = root / f"202601{day:02d}-000000-7"
    path.mkdir(parents=True)
    (path / "lock").touch()
    (path / "router.log").write_bytes(bytes(num_bytes))
    return path


def test_a_directory_is_written_while_its_cluster_runs_and_stays(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    with open_log_dir(root) as path:
        assert root.stat().st_mode & 0o777 == 0o700
        assert is_written(path)
        (path / "router.log").write_text("said")
    assert not is_written(path)
    assert log_dirs(root) == [path]
    assert (path / "router.log").read_text() == "said"


def test_the_oldest_go_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    for day in range(1, 31):
        ended(tmp_path, day)
    (tmp_path / "mine").mkdir()
    (tmp_path / "20250101-000000-1").mkdir()  # the name alone is no proof
    with open_log_dir(tmp_path) as path:
        left = [each.name for each in log_dirs(tmp_path)]
    assert left == ["20250101-000000-1"] + [f"202601{day}-000000-7" for day in range(13, 31)] + [
        path.name
    ]
    assert (tmp_path / "mine").exists()


def test_large_ones_go_earlier_and_one_that_is_written_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    runs, old, young = (ended(tmp_path, day, 80) for day in (1, 2, 3))
    held = module.lock(runs / "lock")
    assert held is not None
    with open_log_dir(tmp_path):
        assert [path.exists() for path in (runs, old, young)] == [True, False, True]
    os.close(held)


def test_a_root_that_cannot_be_made_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), open_log_dir(tmp_path / "file" / "logs"):
        pass


def test_those_who_join_share_one_that_stays_and_the_longest_unused_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 2)
    with join_log_dir(tmp_path, "chat") as path, join_log_dir(tmp_path, "chat") as same:
        assert path == same
        (path / "decode-0.log").write_text("said")
        for age, name in enumerate(("code", "math")):
            with join_log_dir(tmp_path, name):
                pass
            os.utime(tmp_path / name / "lock", (age, age))
        with join_log_dir(tmp_path, "more"):
            assert {each.name for each in tmp_path.iterdir()} == {"chat", "more"}
    assert (path / "decode-0.log").read_text() == "said"


def test_who_joins_as_it_is_cleared_makes_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def locked(path: Path) -> int | None:
        calls.append(path)
        if len(calls) == 1:
            shutil.rmtree(path.parent)
        return lock_shared(path)

    monkeypatch.setattr(module, "lock_shared", locked)
    with join_log_dir(tmp_path, "chat") as path:
        assert len(calls) == 2
        (path / "decode-0.log").write_text("said")
        assert module.lock(path / "lock") is None  # it is held
