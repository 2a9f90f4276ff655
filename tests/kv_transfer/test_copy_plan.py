"""How KV is copied is chosen by a measurement, and changes nothing about what arrives."""

from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import TransferFailed
from cluster.measurements import Measurements
from kv_transfer import copy_plan
from kv_transfer.copy_plan import PIECES, STAGES, best_plan, choose_plan, told
from kv_transfer.doors import DoorSettings, open_doors
from kv_transfer.geometry import SpanPairs
from kv_transfer.pool import FilePool, PoolConfig
from kv_transfer.span_copy import CopyPlan, SpanCopier
from kv_transfer.tcp import trial as tcp_trial
from kv_transfer.tcp.frame import FRAME_BYTES, Framing
from kv_transfer.tcp.trial import FRAMINGS, SLOW_S, best_framing, choose_framing
from kv_transfer.transport import Landed, WriteRefused
from tests.kv_transfer.tcp_rig import End, landed, write

POOL_BYTES = 4 << 20
SIZES = [1, 100, 4096, 16 << 10, 16 << 10, 40 << 10, 64 << 10, 700_001, 2 << 20]


def pairs_of(sizes: list[int]) -> SpanPairs:
    each = np.array(sizes, dtype=np.int64)
    starts = np.cumsum(each) - each
    return SpanPairs(source=starts[::-1].copy(), destination=starts, sizes=each[::-1].copy())


@pytest.fixture
def pool() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, POOL_BYTES, dtype=np.uint8)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.host.waited_s", lambda: 0.0)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("piece", PIECES)
def test_every_plan_moves_the_same_bytes_with_the_same_digest(
    pool: np.ndarray, stage: int, piece: int
) -> None:
    copier = SpanCopier(
        CopyPlan(plain_stage_bytes=stage, digested_stage_bytes=stage, piece_bytes=piece)
    )
    for sizes in ([16 << 10] * 40, [20 << 10] * 7, SIZES, [3 << 20], [64] * 1000):
        pairs, whole = pairs_of(sizes), np.zeros_like(pool)
        expected = SpanCopier().copy(pool, whole, pairs, digest=True)
        for digest in (True, False):
            moved = np.zeros_like(pool)
            found = copier.copy(pool, moved, pairs, digest=digest)
            assert found == (expected if digest else None)
            assert np.array_equal(moved, whole)


def test_the_fastest_of_each_kind_is_the_plan() -> None:
    seconds = {f"{kind} {size}": [2.0] for kind in ("plain", "digested") for size in STAGES}
    seconds |= {f"piece {size}": [2.0] for size in PIECES}
    seconds |= {"plain 0": [1.0], f"digested {STAGES[2]}": [1.0], f"piece {PIECES[3]}": [1.0]}
    plan = best_plan(seconds)
    assert plan == CopyPlan(digested_stage_bytes=STAGES[2], piece_bytes=PIECES[3])
    assert told(plan) == (
        "short spans one by one, through 256 KiB when digested, long ones in pieces of 512 KiB"
    )


def test_a_machine_is_timed_once_and_its_pool_is_not_touched(
    pool: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, measurements = pool.copy(), Measurements(tmp_path)
    plan = choose_plan(pool, measurements)
    assert np.array_equal(pool, before)
    assert measurements.choices["KV copies"] == told(plan)
    monkeypatch.setattr(copy_plan, "time_copies", lambda pool: pytest.fail("timed again"))
    assert choose_plan(pool, Measurements(tmp_path)) == plan


def test_what_was_timed_under_load_is_not_trusted(
    pool: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(range(100))
    monkeypatch.setattr("cluster.host.waited_s", lambda: float(next(looks)))
    monkeypatch.setattr(copy_plan, "best_plan", lambda seconds: pytest.fail("it was trusted"))
    assert choose_plan(pool, Measurements(tmp_path)) == CopyPlan()


async def test_a_new_pair_asks_before_its_first_write(tmp_path: Path) -> None:
    ends = [
        FilePool(PoolConfig(incarnation=name, num_bytes=POOL_BYTES, run_dir=tmp_path))  # type: ignore[arg-type]
        for name in ("a", "b")
    ]
    measurements = Measurements()
    settings = DoorSettings(key=b"k", measurements=measurements)
    [ours], [theirs] = (open_doors(["shared_memory"], end, settings) for end in ends)
    try:
        peer = await ours.connect(theirs.address)
        await landed(peer.write(pairs_of([9]), epoch=1, digest=True, may_start=lambda: True))
        assert "KV copies" in measurements.choices
    finally:
        for each in (ours, theirs, *ends):
            each.close()


def after(seconds: float) -> "Future[Landed]":
    done: Future[Landed] = Future()
    done.set_result(Landed(num_bytes=1, seconds=seconds, digest=None))
    return done


def test_the_fastest_framing_is_used() -> None:
    fast = Framing(FRAME_BYTES // 4, splits=False)
    measurements = Measurements()
    chosen = choose_framing(
        lambda framing, _: after(0.001 if framing == fast else 0.002), "plain", measurements
    )
    assert chosen == fast
    assert measurements.choices == {"KV over TCP (plain)": "frames of 256 KiB on one stream"}
    assert {best_framing({tcp_trial.told(each): [1.0]}) for each in FRAMINGS} == set(FRAMINGS)


def test_where_the_network_limits_nothing_is_tried() -> None:
    tried: list[Framing] = []

    def try_one(framing: Framing, _: int) -> "Future[Landed]":
        tried.append(framing)
        return after(2 * SLOW_S)

    assert choose_framing(try_one, "plain", Measurements()) == Framing()
    assert len(tried) == 1


def test_a_peer_that_refuses_trials_is_written_to_as_ever() -> None:
    refused: Future[Landed] = Future()
    refused.set_exception(WriteRefused("no such epoch"))
    assert issubclass(WriteRefused, TransferFailed)
    assert choose_framing(lambda *_: refused, "plain", Measurements()) == Framing()


@pytest.mark.parametrize("framing", [Framing(1 << 17, splits=True), Framing(1 << 18, splits=False)])
async def test_a_chosen_framing_carries_the_same_bytes(tmp_path: Path, framing: Framing) -> None:
    ours, theirs = End("a", tmp_path, num_streams=2), End("b", tmp_path)
    try:
        writer = await theirs.transport.connect(ours.transport.address)
        writer.admit(1, lambda spans: True)
        ours.fill()
        peer = await ours.transport.connect(theirs.transport.address)
        peer.framing = framing
        await landed(write(peer, (0, 0, len(ours.memory))))
        assert np.array_equal(ours.memory, theirs.memory)
    finally:
        ours.close()
        theirs.close()


async def test_a_pair_over_tcp_is_tried_when_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_trial, "SLOW_S", 60.0)
    measurements = Measurements()
    ours = End("a", tmp_path, num_streams=2, measurements=measurements)
    theirs = End("b", tmp_path)
    try:
        ours.fill()
        peer = await ours.transport.connect(theirs.transport.address)
        assert peer.framing in FRAMINGS
        [choice] = measurements.choices.values()
        assert choice == tcp_trial.told(peer.framing)
        assert not theirs.memory.any()
        assert theirs.counters["num_refused_frames"] == 0
    finally:
        ours.close()
        theirs.close()
