"""Copies spans between byte pools and digests them, at the speed of memory.

Short spans go through a small staging buffer, many at a time: a Python step (and a hand-over
of the interpreter lock) for each would cost more than the bytes. The buffer stays in cache,
so hashing it is nearly free.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from kv_transfer.layout import Offsets, SpanPairs, Spans

Bytes = npt.NDArray[np.uint8]

STAGE_BYTES = 256 * 1024  # a fraction of the second-level cache
# Mean span size from which one copy a span is as fast as staging.
DIRECT_BYTES = 64 * 1024


class SpanCopier:
    """Owns a staging buffer. For one thread at a time."""

    __slots__ = ("_stage",)

    def __init__(self) -> None:
        self._stage = np.empty(STAGE_BYTES, dtype=np.uint8)

    def copy(
        self, source: Bytes, destination: Bytes, pairs: SpanPairs, *, digest: bool
    ) -> int | None:
        """Copies every pair; returns the digest of the bytes in wire order, where asked."""
        hasher = xxhash.xxh3_64() if digest else None
        if not len(pairs):
            pass
        elif pairs.num_bytes >= DIRECT_BYTES * len(pairs):
            _copy_each(source, destination, pairs, hasher)
        else:
            self._copy_staged(source, destination, pairs, hasher)
        return None if hasher is None else int(hasher.intdigest())

    def digest(self, pool: Bytes, spans: Spans) -> int:
        """xxh3_64 of the spans' bytes, as if they were one run."""
        hasher = xxhash.xxh3_64()
        if not len(spans):
            pass
        elif spans.num_bytes >= DIRECT_BYTES * len(spans):
            for offset, num_bytes in spans:
                hasher.update(pool[offset : offset + num_bytes].data)
        else:
            unit = common_unit(spans.offsets, spans.sizes)
            indices = unit_indices(spans.offsets, spans.sizes, unit)
            for staged in self._gathered(pool, indices, unit):
                hasher.update(staged.view(np.uint8).data)
        return int(hasher.intdigest())

    def _copy_staged(
        self, source: Bytes, destination: Bytes, pairs: SpanPairs, hasher: Any
    ) -> None:
        unit = common_unit(pairs.source, pairs.destination, pairs.sizes)
        targets = unit_indices(pairs.destination, pairs.sizes, unit)
        units = _as_units(destination, unit)
        done = 0
        for staged in self._gathered(source, unit_indices(pairs.source, pairs.sizes, unit), unit):
            units[targets[done : done + len(staged)]] = staged
            done += len(staged)
            if hasher is not None:
                hasher.update(staged.view(np.uint8).data)

    def _gathered(self, pool: Bytes, indices: Offsets, unit: int) -> Iterator[npt.NDArray[np.void]]:
        """The units, a stageful at a time; each is overwritten by the next."""
        units = _as_units(pool, unit)
        stage = _as_units(self._stage, unit)
        for first in range(0, len(indices), len(stage)):
            some = indices[first : first + len(stage)]
            staged = stage[: len(some)]
            # "clip" because "raise" would copy once more; the caller checked the bounds.
            units.take(some, out=staged, mode="clip")
            yield staged


def _copy_each(source: Bytes, destination: Bytes, pairs: SpanPairs, hasher: Any) -> None:
    for pair in pairs:
        for done in range(0, pair.num_bytes, STAGE_BYTES):
            num_bytes = min(STAGE_BYTES, pair.num_bytes - done)
            chunk = source[pair.source + done : pair.source + done + num_bytes]
            first = pair.destination + done
            destination[first : first + num_bytes] = chunk
            if hasher is not None:
                hasher.update(chunk.data)  # still in cache


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
