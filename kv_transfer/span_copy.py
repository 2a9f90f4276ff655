"""Copies spans between byte pools and digests them, at the speed of memory.

Short spans go through a small staging buffer, many at a time: a Python step (and a hand-over
of the interpreter lock) for each would cost more than copying the bytes twice. What was just
copied is in cache, so hashing it is nearly free.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from kv_transfer.conversion import Conversion
from kv_transfer.geometry import Offsets, SpanPairs, Spans

Bytes = npt.NDArray[np.uint8]

STAGE_BYTES = 256 * 1024  # a fraction of the second-level cache
# Mean span sizes: below the first a Python step a span costs more than copying it twice, on any
# machine; from the second on it is nothing. In between the plan decides.
DIRECT_BYTES = 16 * 1024
LONG_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlan:
    """Says what is fastest on a machine. A stage of 0 bytes: spans are copied one by one."""

    plain_stage_bytes: int = 0  # for spans of DIRECT_BYTES to LONG_BYTES
    digested_stage_bytes: int = 0  # the same, where they are digested
    piece_bytes: int = STAGE_BYTES  # of a longer span that is digested


class SpanCopier:
    """Owns a staging buffer. For one thread at a time."""

    __slots__ = ("_plan", "_stage")

    def __init__(self, plan: CopyPlan | None = None) -> None:
        self._plan = plan or CopyPlan()
        stages = (self._plan.plain_stage_bytes, self._plan.digested_stage_bytes, STAGE_BYTES)
        self._stage = np.empty(max(stages), dtype=np.uint8)

    def copy(
        self, source: Bytes, destination: Bytes, pairs: SpanPairs, *, digest: bool
    ) -> int | None:
        """Copies every pair; returns the digest of the bytes in wire order, where asked."""
        hasher = xxhash.xxh3_64() if digest else None
        if not len(pairs):
            pass
        elif pairs.conversion is not None:
            self._copy_converted(source, destination, pairs, pairs.conversion, hasher)
        elif stage_bytes := self._stage_bytes(pairs, digest):
            self._copy_staged(source, destination, pairs, hasher, stage_bytes)
        else:
            _copy_each(source, destination, pairs, hasher, self._plan.piece_bytes)
        return None if hasher is None else int(hasher.intdigest())

    def digest(self, pool: Bytes, spans: Spans) -> int:
        """xxh3_64 of the spans' bytes, as if they were one run."""
        hasher = xxhash.xxh3_64()
        if not len(spans):
            pass
        elif spans.num_bytes >= DIRECT_BYTES * len(spans):
            view = pool.data
            for first, num_bytes in zip(spans.offsets.tolist(), spans.sizes.tolist(), strict=True):
                hasher.update(view[first : first + num_bytes])
        else:
            unit = common_unit(spans.offsets, spans.sizes)
            indices = unit_indices(spans.offsets, spans.sizes, unit)
            for staged in self._gathered(pool, indices, unit):
                hasher.update(staged.view(np.uint8).data)
        return int(hasher.intdigest())

    def _stage_bytes(self, pairs: SpanPairs, digest: bool) -> int:
        """0: one copy a span."""
        if pairs.num_bytes < DIRECT_BYTES * len(pairs):
            return STAGE_BYTES
        if pairs.num_bytes >= LONG_BYTES * len(pairs):
            return 0
        return self._plan.digested_stage_bytes if digest else self._plan.plain_stage_bytes

    def _copy_staged(
        self, source: Bytes, destination: Bytes, pairs: SpanPairs, hasher: Any, stage_bytes: int
    ) -> None:
        unit = common_unit(pairs.source, pairs.destination, pairs.sizes)
        targets = unit_indices(pairs.destination, pairs.sizes, unit)
        units = _as_units(destination, unit)
        done = 0
        indices = unit_indices(pairs.source, pairs.sizes, unit)
        for staged in self._gathered(source, indices, unit, stage_bytes):
            units[targets[done : done + len(staged)]] = staged
            done += len(staged)
            if hasher is not None:
                hasher.update(staged.view(np.uint8).data)

    def _copy_converted(
        self,
        source: Bytes,
        destination: Bytes,
        pairs: SpanPairs,
        conversion: Conversion,
        hasher: Any,
    ) -> None:
        targets = RowScatter(destination, pairs.destination_spans, conversion)
        for wire in self.encoded(source, pairs):
            rows = conversion.decode(wire)
            targets.scatter(rows)
            if hasher is not None:
                hasher.update(rows.data)

    def encoded(self, source: Bytes, pairs: SpanPairs) -> Iterator[Bytes]:
        """Gives what these pairs' conversion sends, whole rows at a time, in wire order; each is
        overwritten by the next."""
        assert pairs.conversion is not None
        unit = pairs.conversion.source_row_bytes
        for rows in self._gathered(source, unit_indices(pairs.source, pairs.sizes, unit), unit):
            yield pairs.conversion.encode(rows.view(np.uint8))

    def _gathered(
        self, pool: Bytes, indices: Offsets, unit: int, stage_bytes: int = STAGE_BYTES
    ) -> Iterator[npt.NDArray[np.void]]:
        """The units, a stageful at a time; each is overwritten by the next."""
        units = _as_units(pool, unit)
        stage = _as_units(self._stage[:stage_bytes], unit)
        for first in range(0, len(indices), len(stage)):
            some = indices[first : first + len(stage)]
            staged = stage[: len(some)]
            # "clip" because "raise" would copy once more; the caller checked the bounds.
            units.take(some, out=staged, mode="clip")
            yield staged


class RowScatter:
    """Puts converted rows where they belong, in wire order, as they come."""

    __slots__ = ("_num_done", "_rows", "_targets")

    def __init__(self, destination: Bytes, spans: Spans, conversion: Conversion) -> None:
        unit = conversion.destination_row_bytes
        self._rows = _as_units(destination, unit)
        self._targets = unit_indices(spans.offsets, spans.sizes, unit)
        self._num_done = 0

    def scatter(self, data: Bytes) -> None:
        """The next rows: contiguous, whole ones."""
        rows = data.view(self._rows.dtype)
        self._rows[self._targets[self._num_done : self._num_done + len(rows)]] = rows
        self._num_done += len(rows)


def _copy_each(
    source: Bytes, destination: Bytes, pairs: SpanPairs, hasher: Any, piece_bytes: int
) -> None:
    """One copy a span, in pieces where they are hashed. The loop is all that there is beside
    the bytes: a span of 16 KiB takes 3 microseconds."""
    spans = (pairs.source, pairs.destination, pairs.sizes)
    rows = zip(*(column.tolist() for column in spans), strict=True)
    view = source.data
    for first, to, num_bytes in rows if hasher is None else _pieces(rows, piece_bytes):
        # Not by views: numpy gives the interpreter lock up meanwhile, which the engine waits for.
        destination[to : to + num_bytes] = source[first : first + num_bytes]
        if hasher is not None:
            hasher.update(view[first : first + num_bytes])  # still in cache


def _pieces(
    rows: Iterable[tuple[int, int, int]], piece_bytes: int
) -> Iterator[tuple[int, int, int]]:
    for first, to, num_bytes in rows:
        for done in range(0, num_bytes, piece_bytes):
            yield first + done, to + done, min(piece_bytes, num_bytes - done)


def common_unit(*numbers: Offsets) -> int:
    return int(np.gcd.reduce(np.concatenate(numbers)))


def _as_units(pool: Bytes, unit: int) -> npt.NDArray[np.void]:
    return pool[: len(pool) // unit * unit].view(np.dtype((np.void, unit)))


def unit_indices(offsets: Offsets, sizes: Offsets, unit: int) -> Offsets:
    """The index of every unit of every span, in order."""
    counts = sizes // unit
    before = np.cumsum(counts) - counts
    indices: Offsets = np.repeat(offsets // unit - before, counts)
    indices += np.arange(len(indices))
    return indices
