"""Finds the fastest copy plan on this machine: timed once, on the pool that will be read."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata

import numpy as np

from cluster.measurements import Measurements, Timings
from kv_transfer.geometry import SpanPairs
from kv_transfer.span_copy import Bytes, CopyPlan, SpanCopier

LIMIT_S = 0.08  # for all of it
NUM_ROUNDS = 6
KIB = 1024
STAGES = (0, 128 * KIB, 256 * KIB, 512 * KIB)
PIECES = (64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB)
_SPAN_BYTES = 16 * KIB  # as a block of a layer often is
_MOVED_BYTES = 2 << 20  # a time
_TARGET_BYTES = 16 << 20  # of memory, in turn

Time = Callable[[], float]


def choose_plan(pool: Bytes, measurements: Measurements) -> CopyPlan:
    """Reads the pool and writes elsewhere; some 100 ms, unless it is remembered."""
    if len(pool) < _MOVED_BYTES:
        return CopyPlan()
    name = f"KV copies, numpy {np.__version__}, xxhash {metadata.version('xxhash')}"
    take = measurements.take(name, lambda: time_copies(pool), turn_s=0.0)
    # What other load may have made up is worse than what mostly holds.
    plan = best_plan(take.seconds) if take.is_final else CopyPlan()
    measurements.choices["KV copies"] = told(plan)
    return plan


def best_plan(seconds: Timings) -> CopyPlan:
    return CopyPlan(
        plain_stage_bytes=_best(seconds, "plain"),
        digested_stage_bytes=_best(seconds, "digested"),
        piece_bytes=_best(seconds, "piece"),
    )


def told(plan: CopyPlan) -> str:
    def way(stage_bytes: int) -> str:
        return f"through {stage_bytes // KIB} KiB" if stage_bytes else "one by one"

    return (
        f"short spans {way(plan.plain_stage_bytes)}, {way(plan.digested_stage_bytes)} when"
        f" digested, long ones in pieces of {plan.piece_bytes // KIB} KiB"
    )


def time_copies(pool: Bytes) -> Timings:
    """The least seconds of each candidate; all take turns."""
    target = np.zeros(_TARGET_BYTES, dtype=np.uint8)
    target[:] = 1  # else all its pages are one
    candidates = dict(_candidates(pool, target))
    least: dict[str, list[float]] = {}
    until = time.perf_counter() + LIMIT_S
    for number in range(NUM_ROUNDS):
        for name, take in candidates.items():
            if number > 0 and time.perf_counter() > until:
                return least
            least[name] = [min(take(), *least.get(name, ()), np.inf)]
    return least


def _candidates(pool: Bytes, target: Bytes) -> Iterator[tuple[str, Time]]:
    long, short = _Turns(pool, target, _MOVED_BYTES), _Turns(pool, target, _SPAN_BYTES)
    for size in STAGES:
        plan = CopyPlan(plain_stage_bytes=size, digested_stage_bytes=size)
        yield f"plain {size}", short.timed(plan, digest=False)
        yield f"digested {size}", short.timed(plan, digest=True)
    for size in PIECES:
        yield f"piece {size}", long.timed(CopyPlan(piece_bytes=size), digest=True)


class _Turns:
    """Spans of one size, from elsewhere in the pool each time."""

    def __init__(self, pool: Bytes, target: Bytes, span_bytes: int) -> None:
        self._pool, self._target = pool, target
        self._num = _MOVED_BYTES // span_bytes
        self._size = span_bytes
        dice = np.random.default_rng(0)
        self._source = itertools.cycle(dice.permutation(len(pool) // span_bytes).tolist())
        self._to = itertools.cycle(dice.permutation(len(target) // span_bytes).tolist())

    def timed(self, plan: CopyPlan, *, digest: bool) -> Time:
        copier = SpanCopier(plan)

        def take() -> float:
            pairs = self._pairs()
            began = time.perf_counter()
            copier.copy(self._pool, self._target, pairs, digest=digest)
            return time.perf_counter() - began

        return take

    def _pairs(self) -> SpanPairs:
        source, to = (
            np.array(list(itertools.islice(each, self._num)), dtype=np.int64) * self._size
            for each in (self._source, self._to)
        )
        return SpanPairs(
            source=source, destination=to, sizes=np.full(self._num, self._size, dtype=np.int64)
        )


def _best(seconds: Timings, kind: str) -> int:
    """The size of the fastest candidate of a kind."""
    mine: Mapping[int, float] = {
        int(name.removeprefix(f"{kind} ")): row[0]
        for name, row in seconds.items()
        if name.startswith(f"{kind} ")
    }
    return min(mine, key=lambda size: mine[size])
