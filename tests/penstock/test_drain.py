"""`penstock drain`, `undrain` and `flip`: what they ask of the router, what they wait for, and how
they end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.cli import drain as drain_command
from penstock.v1 import worker_pb2 as pb
from tests.penstock.command_line import Ended, Penstock


@pytest.fixture
def ask(penstock: Penstock, server: Any, tmp_path: Path) -> Callable[..., Ended]:
    secrets = tmp_path / "secrets.yaml"
    secrets.touch(mode=0o600)
    secrets.write_text(f"cluster_token: {'t' * 20}\nhash_secret: '{'0' * 32}'\n")
    return lambda *words: penstock(*words, "-a", server.address, "--secrets-file", str(secrets))


@pytest.fixture(autouse=True)
def told(server: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the router has been told of workers."""
    monkeypatch.setattr(drain_command, "LOOK_S", 0.0)
    heard: list[Any] = server.told
    return heard


def seen(incarnation: str = "1", *, role: Any = pb.ROLE_DECODE, **load: Any) -> pb.StatusResponse:
    """A status in which the worker is so."""
    is_draining = "drain" in load
    worker = pb.WorkerStatus(
        member=pb.RegisterRequest(
            worker=pb.WorkerAddress(worker_id="decode-0", incarnation=incarnation), role=role
        ),
        load=pb.LoadReport(draining=is_draining, serving=not is_draining, **load),
        serving=not is_draining,
        reason="draining" if is_draining else "",
    )
    return pb.StatusResponse(workers=[worker])


DRAINING = seen(open_calls=2, drain=pb.DrainReport(seconds=1.0, left_seconds=29.0))
DRAINED = seen(open_calls=0, drain=pb.DrainReport(seconds=2.0, left_seconds=28.0))
FLIPPING = seen(open_calls=1, drain=pb.DrainReport(seconds=1, left_seconds=9, then=pb.ROLE_PREFILL))


def test_a_drain_is_asked_for_with_its_bound(ask: Callable[..., Ended], told: list[Any]) -> None:
    ended = ask("drain", "decode-0", "--timeout", "5", "--json")
    assert ended.code == 0, ended.err
    assert told == [pb.DrainRequest(worker_id="decode-0", limit_seconds=5)]
    assert ended.json["worker"] == "decode-0"
    assert ended.json["open_calls"] == 2
    ended = ask("drain", "decode-0", "--force")
    assert told[1] == pb.DrainRequest(worker_id="decode-0", force=True)
    assert "'decode-0' drains." in ended.err


def test_waiting_tells_how_it_goes_and_ends_when_nothing_is_in_flight(
    ask: Callable[..., Ended], server: Any
) -> None:
    server.statuses = [seen(), DRAINING, DRAINING, DRAINED]
    ended = ask("drain", "decode-0", "--wait")
    assert ended.code == 0, ended.err
    assert ended.err.count("DRAINING: 2 in flight, 29 s left, since 1 s") == 1
    assert "'decode-0' has drained." in ended.err


def test_a_flip_is_done_when_the_next_life_serves(
    ask: Callable[..., Ended], server: Any, told: list[Any]
) -> None:
    server.statuses = [FLIPPING, pb.StatusResponse(), seen("2", role=pb.ROLE_PREFILL)]
    ended = ask("flip", "decode-0", "--to", "prefill", "--wait")
    assert ended.code == 0, ended.err
    assert told == [pb.DrainRequest(worker_id="decode-0", then=pb.ROLE_PREFILL)]
    assert "DRAINING: 1 in flight, 9 s left, then prefill, since 1 s" in ended.err
    assert "'decode-0' is a prefill worker." in ended.err


def test_a_flip_that_was_given_up_and_one_that_takes_too_long_are_failures(
    ask: Callable[..., Ended], server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for after in (seen(), seen("2")):  # it was given up; its process died and was started again
        server.statuses = [FLIPPING, after]
        ended = ask("flip", "decode-0", "--to", "prefill", "--wait")
        assert ended.code == 1
        assert "serves as it did before" in ended.err
    monkeypatch.setattr(drain_command, "SPARE_S", -30.0)
    ended = ask("flip", "decode-0", "--to", "prefill", "--wait")
    assert ended.code == 6
    assert "penstock status" in ended.err


def test_a_role_that_is_none_is_wrong_use(ask: Callable[..., Ended], told: list[Any]) -> None:
    assert ask("flip", "decode-0", "--to", "router").code == 2
    assert ask("flip", "decode-0").code == 2
    assert ask("drain", "decode-0", "--timeout", "-1").code == 2
    assert told == []


def test_a_worker_serves_again(ask: Callable[..., Ended], told: list[Any]) -> None:
    ended = ask("undrain", "decode-0")
    assert ended.code == 0, ended.err
    assert told == [pb.UndrainRequest(worker_id="decode-0")]
    assert "'decode-0' serves again." in ended.err


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (DRAINING, "DRAINING: 2 in flight, 29 s left, since 1 s"),
        (DRAINED, "DRAINED: since 2 s"),
        (FLIPPING, "DRAINING: 1 in flight, 9 s left, then prefill, since 1 s"),
        (
            seen(open_calls=3, drain=pb.DrainReport(seconds=1, left_seconds=59, ends=True)),
            "DRAINING: 3 in flight, 59 s left, then it ends, since 1 s",
        ),
        (seen(open_calls=3), "serving"),
    ],
)
def test_status_shows_how_far_a_drain_is(
    ask: Callable[..., Ended], server: Any, status: pb.StatusResponse, text: str
) -> None:
    server.statuses = [status]
    ended = ask("status")
    assert text in ended.out
    assert ended.code == (0 if text == "serving" else 8)
