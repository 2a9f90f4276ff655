"""KV that changes its dtype between two pools, or is narrower on the wire than in either.

A number on its way is the source's, then the wire's, then the destination's. int8 is for the
wire only: each row (one head of one token) travels as its scale, a float32, and its numbers in
steps of that scale, so that the largest is 127; a row with NaN or infinity arrives as all NaN.
The error is at most half a step: 1/254 of the row's largest number. bfloat16 rounds to nearest,
ties to even.
A message transport's header says it in a few bytes, which are checked when they come.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.fingerprint import is_lossless
from cluster.types import DTYPE_BYTES
from kv_transfer.transfer import RemoteProtocolError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

INT8 = "int8"
WIRE_DTYPES = (*DTYPE_BYTES, INT8)
_SCALE_BYTES = 4
_MAX_INT8 = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """Converts whole rows. Pure; the three sizes of anything are in proportion to its rows."""

    source_dtype: str
    wire_dtype: str
    destination_dtype: str
    row: int  # numbers that lie together: one head of one token

    @property
    def source_row_bytes(self) -> int:
        return self.row * DTYPE_BYTES[self.source_dtype]

    @property
    def wire_row_bytes(self) -> int:
        if self.wire_dtype == INT8:
            return _SCALE_BYTES + self.row
        return self.row * DTYPE_BYTES[self.wire_dtype]

    @property
    def destination_row_bytes(self) -> int:
        return self.row * DTYPE_BYTES[self.destination_dtype]

    @property
    def is_lossless(self) -> bool:
        dtypes = (self.source_dtype, self.wire_dtype, self.destination_dtype)
        return INT8 not in dtypes and all(map(is_lossless, dtypes, dtypes[1:]))

    def encode(self, source: Bytes) -> Bytes:
        """The wire's bytes of rows as they lie in the source: contiguous, whole rows."""
        if self.wire_dtype == self.source_dtype:
            return source
        numbers = _READ[self.source_dtype](source)
        if self.wire_dtype == INT8:
            return _to_int8(numbers.reshape(-1, self.row))
        return _WRITE[self.wire_dtype](numbers)

    def decode(self, wire: Bytes) -> Bytes:
        """The destination's bytes of rows as `encode` gave them."""
        if self.destination_dtype == self.wire_dtype:
            return wire
        if self.wire_dtype == INT8:
            numbers = _from_int8(wire.reshape(-1, self.wire_row_bytes))
        else:
            numbers = _READ[self.wire_dtype](wire)
        return _WRITE[self.destination_dtype](numbers)


def conversion_between(
    source_dtype: str, destination_dtype: str, row: int, *, wire_dtype: str | None
) -> Conversion | None:
    """Says what happens to KV on its way; None where nothing does.

    `wire_dtype` is what the receiver lets KV be narrowed to, None if to nothing. What is
    narrow already travels as it is. Raises ValueError where numbers would be lost that the
    receiver wants.
    """
    if wire_dtype is not None and wire_dtype not in WIRE_DTYPES:
        raise ValueError(f"wire dtype '{wire_dtype[:32]}' is not one of {', '.join(WIRE_DTYPES)}")
    if wire_dtype is None and not is_lossless(source_dtype, destination_dtype):
        raise ValueError(
            f"{source_dtype} does not fit {destination_dtype}, and the receiver has no 'wire_dtype'"
        )
    if wire_dtype is None or (wire_dtype != INT8 and is_lossless(source_dtype, wire_dtype)):
        wire_dtype = source_dtype
    if source_dtype == wire_dtype == destination_dtype:
        return None
    return Conversion(
        source_dtype=source_dtype,
        wire_dtype=wire_dtype,
        destination_dtype=destination_dtype,
        row=row,
    )


def _to_bfloat16(numbers: Floats) -> Bytes:
    bits = numbers.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # Rounding could carry a NaN's bits into infinity, or round them away.
    is_nan = np.isnan(numbers)
    if is_nan.any():
        rounded = np.where(is_nan, bits >> 16 | 0x40, rounded)
    return _as_bytes(rounded.astype(np.uint16))


def _from_bfloat16(data: Bytes) -> Floats:
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _to_float16(numbers: Floats) -> Bytes:
    with np.errstate(over="ignore"):  # too large for it: infinity
        return _as_bytes(numbers.astype(np.float16))


def _to_int8(rows: Floats) -> Bytes:
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(_MAX_INT8)
    is_finite = np.isfinite(scales)
    steps = np.where(is_finite & (scales > 0), scales, np.float32(1))
    wire = np.empty((len(rows), _SCALE_BYTES + rows.shape[1]), dtype=np.uint8)
    wire[:, :_SCALE_BYTES] = np.where(is_finite, scales, np.float32(np.nan)).view(np.uint8)
    numbers = np.rint(np.where(is_finite, rows, np.float32(0)) / steps)
    # A scale among the smallest numbers there are is itself rounded, and its steps too many.
    wire[:, _SCALE_BYTES:] = numbers.clip(-_MAX_INT8, _MAX_INT8).astype(np.int8).view(np.uint8)
    return wire.reshape(-1)


def _from_int8(wire: Bytes) -> Floats:
    scales = np.ascontiguousarray(wire[:, :_SCALE_BYTES]).view(np.float32)
    numbers: Floats = wire[:, _SCALE_BYTES:].view(np.int8) * scales
    return numbers.reshape(-1)


def _as_bytes(numbers: npt.NDArray[np.generic]) -> Bytes:
    return numbers.reshape(-1).view(np.uint8)


_READ: Mapping[str, Callable[[Bytes], Floats]] = {
    "float32": lambda data: data.view(np.float32),
    "bfloat16": _from_bfloat16,
    "float16": lambda data: data.view(np.float16).astype(np.float32),
}
_WRITE: Mapping[str, Callable[[Floats], Bytes]] = {
    "float32": _as_bytes,
    "bfloat16": _to_bfloat16,
    "float16": _to_float16,
}


MAX_ROW = 1 << 14  # numbers

_FIELDS = struct.Struct("<BBBI")  # dtypes of source, wire and destination, row; a row of 0: none
NUM_BYTES = _FIELDS.size


def encode_conversion(conversion: Conversion | None) -> bytes:
    if conversion is None:
        return _FIELDS.pack(0, 0, 0, 0)
    dtypes = (conversion.source_dtype, conversion.wire_dtype, conversion.destination_dtype)
    return _FIELDS.pack(*map(WIRE_DTYPES.index, dtypes), conversion.row)


def decode_conversion(data: bytes) -> Conversion | None:
    """Raises RemoteProtocolError for one that is not known here."""
    source, wire, destination, row = _FIELDS.unpack(data)
    if not row:
        return None
    if max(source, destination) >= len(DTYPE_BYTES) or wire >= len(WIRE_DTYPES) or row > MAX_ROW:
        raise RemoteProtocolError("The other end converts KV in a way that is not known here.")
    return Conversion(
        source_dtype=WIRE_DTYPES[source],
        wire_dtype=WIRE_DTYPES[wire],
        destination_dtype=WIRE_DTYPES[destination],
        row=row,
    )
