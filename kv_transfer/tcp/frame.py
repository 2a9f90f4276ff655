"""Frames what travels on a TCP stream: a write is one frame or several, each complete in itself.

    header   epoch u64, number of spans u32, number of bytes u32, conversion
    spans    their offsets in the receiver's pool, i64, then their sizes there, u32
    bytes    of the spans, in order; where there is a conversion, as the wire has them

Integers are little-endian. Each frame is answered by one byte (`FrameAnswer`), in order, when its
bytes are where they belong or are certain never to be.
"""

import struct
from collections.abc import Iterator
from dataclasses import replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from kv_transfer.conversion import NUM_BYTES, Conversion, decode_conversion, encode_conversion
from kv_transfer.geometry import Offsets, SpanPairs, Spans
from kv_transfer.transfer import RemoteProtocolError

FRAME_BYTES = 1 << 20  # what a frame may carry
TRIAL_EPOCH = 2**64 - 1  # of frames that are dropped: only how fast they come counts
FRAME_SPANS = 1000  # so that header and spans are one call
HEADER = struct.Struct(f"<QII{NUM_BYTES}s")

_OFFSETS = np.dtype("<i8")
_SIZES = np.dtype("<u4")


class FrameAnswer(IntEnum):
    LANDED = 1
    REFUSED = 2  # no byte of the frame was written
    REVOKED = 3  # on the way: some bytes may have been


class Framing(NamedTuple):
    """Says how a sender cuts its writes up."""

    frame_bytes: int = FRAME_BYTES
    splits: bool = True  # large writes over all streams


class Header(NamedTuple):
    epoch: int
    num_spans: int
    num_bytes: int
    conversion: Conversion | None

    @property
    def num_table_bytes(self) -> int:
        return self.num_spans * (_OFFSETS.itemsize + _SIZES.itemsize)


def cut(pairs: SpanPairs, frame_bytes: int = FRAME_BYTES) -> Iterator[SpanPairs]:
    """Runs of pairs that fit a frame, in wire order; a pair that is too large is cut itself."""
    frame_bytes = _frame_bytes(pairs.conversion, min(frame_bytes, FRAME_BYTES))
    if 0 < pairs.num_bytes <= frame_bytes and len(pairs) <= FRAME_SPANS:
        yield pairs
        return
    pairs = _cut_large(pairs, frame_bytes)
    ends = np.cumsum(pairs.sizes)
    first = done = 0
    while first < len(pairs):
        stop = int(np.searchsorted(ends, done + frame_bytes, side="right"))
        stop = min(stop, first + FRAME_SPANS)
        yield SpanPairs(
            source=pairs.source[first:stop],
            destination=pairs.destination[first:stop],
            sizes=pairs.sizes[first:stop],
            conversion=pairs.conversion,
        )
        first, done = stop, int(ends[stop - 1])


def encode_head(epoch: int, pairs: SpanPairs) -> bytes:
    """Header and spans."""
    num_bytes, conversion = pairs.num_bytes, pairs.conversion
    if conversion is not None:
        num_bytes = num_bytes // conversion.source_row_bytes * conversion.wire_row_bytes
    return b"".join(
        (
            HEADER.pack(epoch, len(pairs), num_bytes, encode_conversion(conversion)),
            pairs.destination.astype(_OFFSETS).tobytes(),
            pairs.destination_sizes.astype(_SIZES).tobytes(),
        )
    )


def decode_header(data: bytes) -> Header:
    """Raises RemoteProtocolError where a limit is exceeded."""
    epoch, num_spans, num_bytes, conversion = HEADER.unpack(data)
    header = Header(epoch, num_spans, num_bytes, decode_conversion(conversion))
    if not 0 < header.num_spans <= FRAME_SPANS or not 0 < header.num_bytes <= FRAME_BYTES:
        raise RemoteProtocolError(
            f"A frame of {header.num_spans} spans and {header.num_bytes} bytes came; at most "
            f"{FRAME_SPANS} and {FRAME_BYTES} are allowed."
        )
    return header


def decode_spans(header: Header, table: bytes) -> Spans:
    """Raises RemoteProtocolError where they are not of so many bytes."""
    offsets = np.frombuffer(table, dtype=_OFFSETS, count=header.num_spans)
    sizes = np.frombuffer(table, dtype=_SIZES, offset=offsets.nbytes).astype(np.int64)
    if not sizes.all() or _wire_bytes(offsets, sizes, header.conversion) != header.num_bytes:
        raise RemoteProtocolError(
            f"A frame's spans are of {int(sizes.sum())} bytes, its header says {header.num_bytes}."
        )
    return Spans(offsets=offsets.astype(np.int64), sizes=sizes)


def decode_answer(byte: int) -> FrameAnswer:
    try:
        return FrameAnswer(byte)
    except ValueError as error:
        raise RemoteProtocolError(f"{byte} came in answer to a frame.") from error


def views_of(memory: memoryview, offsets: Offsets, sizes: Offsets) -> list[memoryview]:
    """Views the bytes of spans in a pool: no copy."""
    ends = (offsets + sizes).tolist()
    return [memory[start:stop] for start, stop in zip(offsets.tolist(), ends, strict=True)]


def lie_in(spans: Spans, num_bytes: int) -> bool:
    """Tells whether spans of sane sizes lie in a pool. Offsets may be any: nothing overflows."""
    return bool(((spans.offsets >= 0) & (spans.offsets <= num_bytes - spans.sizes)).all())


def _frame_bytes(conversion: Conversion | None, at_most: int) -> int:
    """Counts what a frame carries, in the source: whole rows, at both ends of their conversion."""
    if conversion is None:
        return at_most
    num_rows = at_most // max(conversion.source_row_bytes, conversion.wire_row_bytes)
    return num_rows * conversion.source_row_bytes


def _wire_bytes(offsets: Offsets, sizes: Offsets, conversion: Conversion | None) -> int | None:
    """Counts the bytes that bring these spans of the receiver's pool; None: no whole rows."""
    if conversion is None:
        return int(sizes.sum())
    row_bytes = conversion.destination_row_bytes
    if (sizes % row_bytes).any() or (offsets % row_bytes).any():
        return None
    return int(sizes.sum()) // conversion.destination_row_bytes * conversion.wire_row_bytes


def _cut_large(pairs: SpanPairs, frame_bytes: int) -> SpanPairs:
    counts = -(-pairs.sizes // frame_bytes)
    if not len(pairs) or int(counts.max()) == 1:
        return pairs
    before: Offsets = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    before *= frame_bytes
    shifted = replace(pairs, sizes=before).destination_sizes
    return SpanPairs(
        source=np.repeat(pairs.source, counts) + before,
        destination=np.repeat(pairs.destination, counts) + shifted,
        sizes=np.minimum(np.repeat(pairs.sizes, counts) - before, frame_bytes),
        conversion=pairs.conversion,
    )
