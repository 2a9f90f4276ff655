"""A stageful of a pool's bytes in one run, for transports that send runs and not spans."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kv_transfer.conversion import Bytes, Conversion
from kv_transfer.geometry import Offsets, SpanPairs, Spans
from kv_transfer.span_copy import DIRECT_BYTES, SpanCopier, common_unit, unit_indices

NUM_STAGES = 2  # one is on the wire while the other is filled or emptied
HOST_STAGE_BYTES = 1 << 20  # stays in the second-level cache between two copies
_ROW_TYPES = (torch.int64, torch.int32, torch.int16, torch.uint8)


def stagefuls(spans: Spans, stage_bytes: int) -> Iterator[Spans]:
    """The spans, cut into runs of `stage_bytes` (the last may be shorter)."""
    ends = np.cumsum(spans.sizes)
    for start in range(0, spans.num_bytes, stage_bytes):
        stop = min(start + stage_bytes, int(ends[-1]))
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        offsets = spans.offsets[first : last + 1].copy()
        sizes = spans.sizes[first : last + 1].copy()
        sizes[-1] -= int(ends[last]) - stop
        before = start - int(ends[first] - spans.sizes[first])
        offsets[0] += before
        sizes[0] -= before
        yield Spans(offsets=offsets, sizes=sizes)


class Cut(NamedTuple):
    """Measures what one stageful is of a write's bytes, at each point of their way."""

    source: int
    wire: int
    destination: int

    @classmethod
    def of(cls, stage_bytes: int, conversion: Conversion | None) -> "Cut":
        """Cuts off as much as a stage holds: where rows are converted, whole ones."""
        if conversion is None:
            return cls(stage_bytes, stage_bytes, stage_bytes)
        row = cls(
            conversion.source_row_bytes, conversion.wire_row_bytes, conversion.destination_row_bytes
        )
        num_rows = stage_bytes // max(row)
        return cls(num_rows * row.source, num_rows * row.wire, num_rows * row.destination)


class Stage:
    """Memory for one stageful, on the device that the wire reads and writes. For one thread at
    a time."""

    __slots__ = ("_copier", "_far", "_host", "_near", "_pool")

    def __init__(self, pool: Tensor, device: torch.device, num_bytes: int) -> None:
        """`pool` is all of it, uint8, on any device."""
        self._copier = SpanCopier()
        self._pool = pool
        self._near = _stage_on(pool.device, num_bytes)
        self._far = self._near if device == pool.device else _stage_on(device, num_bytes)
        on_host = torch.device("cpu")
        self._host = self._far if device == on_host else _stage_on(on_host, num_bytes)

    def wire(self, num_bytes: int) -> Tensor:
        """Gives what to send, or to receive into."""
        return self._far[:num_bytes]

    def gather(self, spans: Spans) -> Tensor:
        """The pool's bytes, on the wire's device; returns when they are there."""
        num_bytes = spans.num_bytes
        self._gather(spans)
        if self._far is not self._near:
            self._far[:num_bytes].copy_(self._near[:num_bytes], non_blocking=True)
        _settle(self._pool.device)
        return self._far[:num_bytes]

    def put(self, data: Bytes) -> Tensor:
        """Bytes of the host, on the wire's device."""
        self._host.numpy()[: len(data)] = data
        if self._far is not self._host:
            self._far[: len(data)].copy_(self._host[: len(data)])
        return self._far[: len(data)]

    def scatter(self, spans: Spans) -> None:
        """Copies what is on the wire's device into the pool; returns when it is there."""
        num_bytes = spans.num_bytes
        if self._far is not self._near:
            self._near[:num_bytes].copy_(self._far[:num_bytes], non_blocking=True)
        self._scatter(spans)
        _settle(self._pool.device)

    def on_host(self, num_bytes: int) -> Bytes:
        """The same bytes, to be digested."""
        if self._host is not self._far:
            self._host[:num_bytes].copy_(self._far[:num_bytes], non_blocking=True)
            _settle(self._far.device)
        array: Bytes = self._host[:num_bytes].numpy()
        return array

    def _gather(self, spans: Spans) -> None:
        if self._pool.device.type == "cpu":
            self._copy(self._pool, spans.offsets, self._near, _in_a_run(spans), spans.sizes)
        else:
            gather(self._pool, spans, self._near)

    def _scatter(self, spans: Spans) -> None:
        if self._pool.device.type == "cpu":
            self._copy(self._near, _in_a_run(spans), self._pool, spans.offsets, spans.sizes)
        else:
            scatter(self._near, spans, self._pool)

    def _copy(
        self, source: Tensor, at: Offsets, destination: Tensor, to: Offsets, sizes: Offsets
    ) -> None:
        # Torch shares even a small copy among threads, which wait for each other spinning.
        pairs = SpanPairs(source=at, destination=to, sizes=sizes)
        self._copier.copy(source.numpy(), destination.numpy(), pairs, digest=False)


def gather(pool: Tensor, spans: Spans, run: Tensor) -> None:
    """Spans of a pool into the beginning of a run on the same device, by torch."""
    if _is_direct(spans):
        for offset, first, num_bytes in _triples(spans):
            run[first : first + num_bytes].copy_(pool[offset : offset + num_bytes])
    else:
        unit = common_unit(spans.offsets, spans.sizes)
        indices = _indices(spans, unit, pool.device)
        out = _rows(run, unit)[: len(indices)]
        torch.index_select(_rows(pool, unit), 0, indices, out=out)


def scatter(run: Tensor, spans: Spans, pool: Tensor) -> None:
    """The beginning of a run into spans of a pool on the same device, by torch."""
    if _is_direct(spans):
        for offset, first, num_bytes in _triples(spans):
            pool[offset : offset + num_bytes].copy_(run[first : first + num_bytes])
    else:
        unit = common_unit(spans.offsets, spans.sizes)
        indices = _indices(spans, unit, pool.device)
        _rows(pool, unit).index_copy_(0, indices, _rows(run, unit)[: len(indices)])


def on_own_stream(device: torch.device) -> None:
    """Serves a thread that copies: the engine's stream neither waits for it nor holds it up."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def _in_a_run(spans: Spans) -> Offsets:
    offsets: Offsets = np.cumsum(spans.sizes) - spans.sizes
    return offsets


def _is_direct(spans: Spans) -> bool:
    return spans.num_bytes >= DIRECT_BYTES * len(spans)


def _triples(spans: Spans) -> Iterator[tuple[int, int, int]]:
    """Offset in the pool, offset in the run, bytes."""
    return zip(spans.offsets.tolist(), _in_a_run(spans).tolist(), spans.sizes.tolist(), strict=True)


def _indices(spans: Spans, unit: int, device: torch.device) -> Tensor:
    return torch.from_numpy(unit_indices(spans.offsets, spans.sizes, unit)).to(device)


def _rows(run: Tensor, unit: int) -> Tensor:
    """Views it as rows of `unit` bytes, of the widest type that divides them."""
    dtype = next(dtype for dtype in _ROW_TYPES if unit % dtype.itemsize == 0)
    whole = run[: len(run) // unit * unit]
    return whole.view(dtype).view(-1, unit // dtype.itemsize)


def _stage_on(device: torch.device, num_bytes: int) -> Tensor:
    pinned = device.type == "cpu" and torch.cuda.is_available()
    return torch.empty(num_bytes, dtype=torch.uint8, device=device, pin_memory=pinned)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
