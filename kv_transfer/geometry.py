"""Says where a run of tokens lies in a KV pool, as byte spans, and how two layouts differ.

Addressing is by token and head, so the two ends may have different block sizes and shards. The
wire order of a layer's bytes is K of tokens [start, stop), then V of them, whatever the blocks;
of each token its heads in order.

Of a range of tokens a part moves from one pool into another: of the heads, those that both hold;
of a layer with a sliding window, the tokens that a later position can still see. Both ends derive
it from the two layouts and the grant.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cluster.fingerprint import layout_mismatch
from cluster.types import KvLayout, first_visible
from kv_transfer.conversion import Conversion, conversion_between

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
    """Spans of a source pool and what they become in a destination pool, in wire order."""

    source: Offsets
    destination: Offsets
    sizes: Offsets  # in the source
    conversion: Conversion | None = None  # None: equal bytes

    @property
    def num_bytes(self) -> int:
        """Counts bytes in the source."""
        return int(self.sizes.sum())

    @property
    def destination_sizes(self) -> Offsets:
        if (conversion := self.conversion) is None:
            return self.sizes
        return self.sizes // conversion.source_row_bytes * conversion.destination_row_bytes

    @property
    def destination_spans(self) -> Spans:
        return Spans(offsets=self.destination, sizes=self.destination_sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[SpanPair]:
        return map(SpanPair, self.source.tolist(), self.destination.tolist(), self.sizes.tolist())

    def fits(self, source_bytes: int, destination_bytes: int) -> bool:
        """Tells whether every span lies inside its pool."""
        if not len(self.sizes):
            return True
        ends = (
            (self.source, self.sizes, source_bytes),
            (self.destination, self.destination_sizes, destination_bytes),
        )
        return int(self.sizes.min()) > 0 and all(
            int(offsets.min()) >= 0 and int((offsets + sizes).max()) <= num_bytes
            for offsets, sizes, num_bytes in ends
        )


class BlockTable:
    """A sequence's blocks in one pool: turns token positions into offsets."""

    __slots__ = ("_blocks", "_layer_bytes", "_planes", "layout")

    def __init__(self, layout: KvLayout, blocks: Sequence[int]) -> None:
        self.layout = layout
        self._blocks = np.asarray(blocks, dtype=np.int64)
        self._planes = np.arange(layout.num_planes).reshape(-1, 1) * layout.plane_bytes
        self._layer_bytes = layout.num_planes * layout.plane_bytes
        outside = self._blocks[(self._blocks < 0) | (self._blocks >= layout.num_blocks)]
        if len(outside):
            raise ValueError(
                f"A block table names block {outside[0]} of a pool of {layout.num_blocks} blocks."
            )

    @property
    def num_tokens(self) -> int:
        """Tokens that the blocks have room for."""
        return len(self._blocks) * self.layout.block_size

    def offsets(self, tokens: Offsets, first_head: int) -> Offsets:
        """Byte offsets of this head of the tokens' K inside one layer's K plane."""
        layout = self.layout
        block, slot = np.divmod(tokens, layout.block_size)
        offsets: Offsets = self._blocks[block] * layout.block_bytes
        offsets += slot * layout.slot_bytes + (first_head - layout.first_head) * layout.head_bytes
        return offsets

    def in_all_planes(self, layer: int, offsets: Offsets) -> Offsets:
        """Gives what lies at these offsets of the layer's K plane, then of its V plane."""
        if not 0 <= layer < self.layout.num_layers:
            raise ValueError(f"Layer {layer} is not one of {self.layout.num_layers}.")
        return (self._planes + layer * self._layer_bytes + offsets).reshape(-1)

    def spans(self, layer: int, start: int, stop: int, heads: range) -> Spans:
        """K, then V, of these heads of tokens [start, stop) of one layer; adjacent blocks are
        one span where the heads are all."""
        edges = _edges(start, stop, self, self, heads)
        offsets = self.offsets(edges[:-1], heads.start)
        sizes = np.diff(edges) * len(heads) * self.layout.head_bytes
        plane = _merged(SpanPairs(source=offsets, destination=offsets, sizes=sizes))
        return Spans(
            offsets=self.in_all_planes(layer, plane.source),
            sizes=np.tile(plane.sizes, self.layout.num_planes),
        )

    def check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.num_tokens:
            raise ValueError(
                f"Tokens [{start}, {stop}) do not lie in a block table of {self.num_tokens} tokens."
            )


def spans(layout: KvLayout, layer: int, blocks: Sequence[int], start: int, stop: int) -> Spans:
    """K, then V, of tokens [start, stop) of one layer; adjacent blocks are one span."""
    return BlockTable(layout, blocks).spans(layer, start, stop, layout.heads)


def pair_spans(
    source_layout: KvLayout,
    source_blocks: Sequence[int],
    destination_layout: KvLayout,
    destination_blocks: Sequence[int],
    layer: int,
    start: int,
    stop: int,
    *,
    wire_dtype: str | None = None,
) -> SpanPairs:
    """Says what to copy where, so that tokens [start, stop) of one layer move between two pools."""
    source = BlockTable(source_layout, source_blocks)
    destination = BlockTable(destination_layout, destination_blocks)
    return PairedTables(source, destination, wire_dtype).pairs(layer, start, stop)


class PairedTables:
    """The same sequence in two pools. Keeps the last range it was asked for: the layers of one
    chunk share it, and differ by a constant. Not thread-safe."""

    __slots__ = ("_conversion", "_destination", "_last", "_range", "_sizes", "_source", "share")

    def __init__(
        self, source: BlockTable, destination: BlockTable, wire_dtype: str | None = None
    ) -> None:
        """Raises ValueError where nothing can move between such pools."""
        self.share = Share(
            source=source.layout, destination=destination.layout, wire_dtype=wire_dtype
        )
        self._conversion = self.share.conversion
        self._source = source
        self._destination = destination
        self._range = (-1, -1)
        self._last = _NO_PAIRS
        self._sizes = _NONE

    def pairs(self, layer: int, start: int, stop: int) -> SpanPairs:
        """Pairs the spans of all these tokens, whether a window leaves some out or not."""
        if self._range != (start, stop):
            self._last = self._plane_pairs(start, stop)
            self._sizes = np.tile(self._last.sizes, self._source.layout.num_planes)
            self._range = (start, stop)
        last = self._last
        return SpanPairs(
            source=self._source.in_all_planes(layer, last.source),
            destination=self._destination.in_all_planes(layer, last.destination),
            sizes=self._sizes,
            conversion=self._conversion,
        )

    def _plane_pairs(self, start: int, stop: int) -> SpanPairs:
        heads = self.share.heads
        edges = _edges(start, stop, self._source, self._destination, heads)
        pairs = SpanPairs(
            source=self._source.offsets(edges[:-1], heads.start),
            destination=self._destination.offsets(edges[:-1], heads.start),
            sizes=np.diff(edges) * (len(heads) * self._source.layout.head_bytes),
            conversion=self._conversion,
        )
        return _merged(pairs)


_NONE: Offsets = np.empty(0, dtype=np.int64)
_NO_PAIRS = SpanPairs(source=_NONE, destination=_NONE, sizes=_NONE)


def _edges(start: int, stop: int, one: BlockTable, other: BlockTable, heads: range) -> Offsets:
    """Token positions where either block table may jump, with both ends of the range."""
    one.check_range(start, stop)
    other.check_range(start, stop)
    if not heads == one.layout.heads == other.layout.heads:
        return np.arange(start, stop + 1)  # between two tokens lie other heads
    sizes = {one.layout.block_size, other.layout.block_size}
    inner = [np.arange(start // size * size + size, stop, size) for size in sizes]
    edges = np.sort(np.concatenate((*inner, np.array((start, stop), dtype=np.int64))))
    # Not np.unique: its first call imports masked arrays, in the middle of a first request.
    return edges[np.concatenate(([True], edges[1:] != edges[:-1]))]


def _merged(pairs: SpanPairs) -> SpanPairs:
    if not len(pairs):
        return pairs
    source, destination = pairs.source, pairs.destination
    ends_source = source + pairs.sizes
    ends_destination = destination + pairs.destination_sizes
    jumps = (source[1:] != ends_source[:-1]) | (destination[1:] != ends_destination[:-1])
    first = np.concatenate(([0], np.flatnonzero(jumps) + 1))
    return SpanPairs(
        source=source[first],
        destination=destination[first],
        sizes=np.add.reduceat(pairs.sizes, first),
        conversion=pairs.conversion,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Raises ValueError where nothing can move between such pools."""

    source: KvLayout
    destination: KvLayout
    wire_dtype: str | None = None  # what the receiver lets KV be narrowed to

    def __post_init__(self) -> None:
        problems = layout_mismatch(self.source, self.destination)
        if not self.heads:
            problems.append(f"heads: {self.source.heads} and {self.destination.heads}")
        if problems:
            raise ValueError(f"KV cannot move between these pools: {'; '.join(problems)}.")
        _ = self.conversion

    @property
    def heads(self) -> range:
        ours, theirs = self.source.heads, self.destination.heads
        return range(max(ours.start, theirs.start), min(ours.stop, theirs.stop))

    @property
    def conversion(self) -> Conversion | None:
        """None where the bytes of both pools are the same."""
        ours, theirs = self.source.dtype, self.destination.dtype
        return conversion_between(ours, theirs, self.source.head_dim, wire_dtype=self.wire_dtype)

    @property
    def is_lossless(self) -> bool:
        return self.conversion is None or self.conversion.is_lossless

    def first(self, layer: int, start: int, stop: int) -> int:
        """The first of tokens [start, stop) that travels in this layer."""
        return max(start, first_visible(self.source.window(layer), stop))

    def whole_from(self, start: int, stop: int) -> int:
        """The first of tokens [start, stop) that travels in every layer."""
        return max(self.first(layer, start, stop) for layer in range(self.source.num_layers))

    def first_of_windows(self, start: int, stop: int) -> int:
        """The first of tokens [start, stop) that travels in a layer with a window; `stop` where
        none has one."""
        windows = filter(None, self.source.windows)
        return min((max(start, first_visible(window, stop)) for window in windows), default=stop)

    def num_bytes(self, start: int, stop: int) -> int:
        """Bytes read from the source's pool, of all layers and planes."""
        layers = range(self.source.num_layers)
        num_tokens = sum(stop - self.first(layer, start, stop) for layer in layers)
        row_bytes = len(self.heads) * self.source.head_bytes
        return num_tokens * self.source.num_planes * row_bytes


def within_blocks(layout: KvLayout, blocks: Sequence[int], heads: range) -> Callable[[Spans], bool]:
    """Tells whether spans lie in these blocks, each in one of them or in a run of them; where only
    some heads are lent, each in those of one slot."""
    is_lent = np.zeros(layout.num_blocks, dtype=bool)
    is_lent[list(blocks)] = True
    before = np.concatenate(([0], np.cumsum(is_lent)))  # lent blocks before each

    first_byte = (heads.start - layout.first_head) * layout.head_bytes
    last_byte = first_byte + len(heads) * layout.head_bytes

    def allows(spans: Spans) -> bool:
        plane = layout.plane_bytes
        first = spans.offsets % plane // layout.block_bytes
        last = (spans.offsets + spans.sizes - 1) % plane // layout.block_bytes
        is_sane = (spans.offsets >= 0) & (spans.sizes > 0) & (first <= last)
        is_sane &= (spans.sizes <= plane) & (spans.offsets + spans.sizes <= layout.pool_bytes)
        if heads != layout.heads:
            in_slot = spans.offsets % layout.slot_bytes
            is_sane &= (in_slot >= first_byte) & (in_slot + spans.sizes <= last_byte)
        if not is_sane.all():
            return False
        return bool((before[last + 1] - before[first] == last - first + 1).all())

    return allows
