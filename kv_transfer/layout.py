"""Where a run of tokens lies in a KV pool, as byte spans, and how two layouts differ.

Addressing is by token range, so the two ends may have different block sizes. The wire order
of a layer's bytes is K of tokens [start, stop), then V of them, whatever the blocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cluster.types import Fingerprint, KvLayout

Offsets = npt.NDArray[np.int64]


class Span(NamedTuple):
    offset: int
    num_bytes: int


class SpanPair(NamedTuple):
    source: int
    destination: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spans:
    """Spans of one pool in wire order, as arrays: a long prompt has thousands."""

    offsets: Offsets
    sizes: Offsets

    @property
    def num_bytes(self) -> int:
        return int(self.sizes.sum())

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[Span]:
        return map(Span, self.offsets.tolist(), self.sizes.tolist())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpanPairs:
    """Equal spans of a source and a destination pool, in wire order."""

    source: Offsets
    destination: Offsets
    sizes: Offsets

    @property
    def num_bytes(self) -> int:
        return int(self.sizes.sum())

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[SpanPair]:
        return map(SpanPair, self.source.tolist(), self.destination.tolist(), self.sizes.tolist())

    def fits(self, source_bytes: int, destination_bytes: int) -> bool:
        """Whether every span lies inside its pool."""
        if not len(self.sizes):
            return True
        ends = ((self.source, source_bytes), (self.destination, destination_bytes))
        return int(self.sizes.min()) > 0 and all(
            int(offsets.min()) >= 0 and int((offsets + self.sizes).max()) <= num_bytes
            for offsets, num_bytes in ends
        )


class BlockTable:
    """A sequence's blocks in one pool: turns token positions into offsets."""

    __slots__ = ("_blocks", "layout")

    def __init__(self, layout: KvLayout, blocks: Sequence[int]) -> None:
        self.layout = layout
        self._blocks = np.asarray(blocks, dtype=np.int64)
        outside = self._blocks[(self._blocks < 0) | (self._blocks >= layout.num_blocks)]
        if len(outside):
            raise ValueError(
                f"A block table names block {outside[0]} of a pool of {layout.num_blocks} blocks."
            )

    @property
    def num_tokens(self) -> int:
        """Tokens that the blocks have room for."""
        return len(self._blocks) * self.layout.block_size

    def offsets(self, tokens: Offsets) -> Offsets:
        """Byte offsets of the tokens' K inside one layer's K plane."""
        block, slot = np.divmod(tokens, self.layout.block_size)
        offsets: Offsets = self._blocks[block] * self.layout.block_bytes
        offsets += slot * self.layout.slot_bytes
        return offsets

    def plane(self, layer: int, part: int) -> int:
        """Offset of a layer's K (part 0) or V (part 1) plane."""
        return (layer * 2 + part) * self.layout.num_blocks * self.layout.block_bytes

    def spans(self, layer: int, start: int, stop: int) -> Spans:
        """K, then V, of tokens [start, stop) of one layer; adjacent blocks are one span."""
        paired = PairedTables(self, self).pairs(layer, start, stop)
        return Spans(offsets=paired.source, sizes=paired.sizes)

    def check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.num_tokens:
            raise ValueError(
                f"Tokens [{start}, {stop}) do not lie in a block table of {self.num_tokens} tokens."
            )


def spans(layout: KvLayout, layer: int, blocks: Sequence[int], start: int, stop: int) -> Spans:
    """K, then V, of tokens [start, stop) of one layer; adjacent blocks are one span."""
    return BlockTable(layout, blocks).spans(layer, start, stop)


def pair_spans(
    source_layout: KvLayout,
    source_blocks: Sequence[int],
    destination_layout: KvLayout,
    destination_blocks: Sequence[int],
    layer: int,
    start: int,
    stop: int,
) -> SpanPairs:
    """What to copy where, so that tokens [start, stop) of one layer move between two pools."""
    source = BlockTable(source_layout, source_blocks)
    destination = BlockTable(destination_layout, destination_blocks)
    return PairedTables(source, destination).pairs(layer, start, stop)


class PairedTables:
    """The same sequence in two pools. Keeps the last range it was asked for: the layers of one
    chunk share it, and differ by a constant. Not thread-safe."""

    __slots__ = ("_destination", "_last", "_range", "_source")

    def __init__(self, source: BlockTable, destination: BlockTable) -> None:
        differences = geometry_mismatch(source.layout, destination.layout)
        if differences:
            raise ValueError(f"KV cannot move between these pools: {'; '.join(differences)}.")
        self._source = source
        self._destination = destination
        self._range = (-1, -1)
        self._last = SpanPairs(source=_NONE, destination=_NONE, sizes=_NONE)

    def pairs(self, layer: int, start: int, stop: int) -> SpanPairs:
        if self._range != (start, stop):
            self._last = self._plane_pairs(start, stop)
            self._range = (start, stop)
        last = self._last
        return SpanPairs(
            source=_in_both_planes(self._source, layer, last.source),
            destination=_in_both_planes(self._destination, layer, last.destination),
            sizes=np.concatenate((last.sizes, last.sizes)),
        )

    def _plane_pairs(self, start: int, stop: int) -> SpanPairs:
        self._source.check_range(start, stop)
        self._destination.check_range(start, stop)
        if start == stop:
            return SpanPairs(source=_NONE, destination=_NONE, sizes=_NONE)
        block_sizes = {self._source.layout.block_size, self._destination.layout.block_size}
        edges = _edges(start, stop, block_sizes)
        return _merged(
            self._source.offsets(edges[:-1]),
            self._destination.offsets(edges[:-1]),
            np.diff(edges) * self._source.layout.slot_bytes,
        )


_NONE: Offsets = np.empty(0, dtype=np.int64)


def _edges(start: int, stop: int, block_sizes: set[int]) -> Offsets:
    """Token positions where either block table may jump, with both ends."""
    inner = [np.arange(start // size * size + size, stop, size) for size in block_sizes]
    edges = np.sort(np.concatenate((*inner, np.array((start, stop), dtype=np.int64))))
    # Not np.unique: its first call imports masked arrays, in the middle of a first request.
    return edges[np.concatenate(([True], edges[1:] != edges[:-1]))]


def _merged(source: Offsets, destination: Offsets, sizes: Offsets) -> SpanPairs:
    ends_source, ends_destination = source + sizes, destination + sizes
    jumps = (source[1:] != ends_source[:-1]) | (destination[1:] != ends_destination[:-1])
    first = np.concatenate(([0], np.flatnonzero(jumps) + 1))
    return SpanPairs(
        source=source[first],
        destination=destination[first],
        sizes=np.add.reduceat(sizes, first),
    )


def _in_both_planes(table: BlockTable, layer: int, offsets: Offsets) -> Offsets:
    if not 0 <= layer < table.layout.num_layers:
        raise ValueError(f"Layer {layer} is not one of {table.layout.num_layers}.")
    return np.concatenate((offsets + table.plane(layer, 0), offsets + table.plane(layer, 1)))


def geometry_mismatch(a: KvLayout, b: KvLayout) -> list[str]:
    """Why KV cannot move between two pools; their block sizes and counts may differ."""
    names = ("num_layers", "num_kv_heads", "head_dim", "dtype")
    return [
        f"{name} {getattr(a, name)} against {getattr(b, name)}"
        for name in names
        if getattr(a, name) != getattr(b, name)
    ]


def mismatch(a: Fingerprint, b: Fingerprint) -> list[str]:
    """Why two workers cannot be paired: one entry a difference, empty when they can."""
    names = [field.name for field in fields(Fingerprint) if field.name != "layout"]
    differences = [
        f"{name} {getattr(a, name)} against {getattr(b, name)}"
        for name in names
        if getattr(a, name) != getattr(b, name)
    ]
    return differences + geometry_mismatch(a.layout, b.layout)
