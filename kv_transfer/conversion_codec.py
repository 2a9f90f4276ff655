"""A conversion as a message transport's header says it: a few bytes, checked when they come."""

import struct

from cluster.types import DTYPE_BYTES
from kv_transfer.conversion import WIRE_DTYPES, Conversion
from kv_transfer.transfer import RemoteProtocolError

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
