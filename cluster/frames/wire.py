"""The frames that a router and a decode worker exchange: a header, and at most 64 KiB. Pure.

    START   ▶ seconds left, bytes of the whole request, the first of them;  MORE ▶ the rest
    ATTACH  ▶ a `Reattach`: the answer to a request of an earlier call goes on by this one
    CREDIT  ▶ cost of messages that were taken;                             CANCEL ▶
    PART    ◀ of a message;                     MESSAGE ◀ the last part of it, or all of it
    END     ◀ nothing, or why: a `google.rpc.Status`

HELLO ▶ and WELCOME ◀ come before them all. Whatever else comes ends the connection. Of no stream is
ALIVE ▶, every so often: who has said it once is owed his answers for a while after he went silent.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final

MAX_PAYLOAD_BYTES: Final = 64 << 10
WINDOW_BYTES: Final = 64 << 10  # of one answer, that its reader may leave unread, by `cost`
ALIVE_S: Final = 0.5  # between two signs of life
_KEPT_BYTES: Final = 64  # about what it takes to keep a message, beside its own
START: Final = struct.Struct("<dI")  # seconds left, bytes of the whole request
CREDIT: Final = struct.Struct("<I")
_HEADER: Final = struct.Struct("<IBI")  # bytes of payload, kind, stream


class FrameKind(IntEnum):
    HELLO = 1
    WELCOME = 2
    START = 3
    MORE = 4
    PART = 5
    MESSAGE = 6
    END = 7
    CANCEL = 8
    CREDIT = 9
    ATTACH = 10
    ALIVE = 11


Frame = tuple[int, int, bytes]  # kind, stream, payload


def frame_bytes(kind: FrameKind, stream: int, payload: bytes = b"") -> bytes:
    return _HEADER.pack(len(payload), kind, stream) + payload


def cost(message: bytes) -> int:
    """What a message takes of its answer's window: many small ones, or empty ones, fill it, too."""
    return len(message) + _KEPT_BYTES


def in_parts(data: bytes, last: FrameKind, others: FrameKind, stream: int) -> Iterator[bytes]:
    """Cuts what is too large for one frame; the last one says so."""
    at = 0
    while len(data) - at > MAX_PAYLOAD_BYTES:
        yield frame_bytes(others, stream, data[at : at + MAX_PAYLOAD_BYTES])
        at += MAX_PAYLOAD_BYTES
    yield frame_bytes(last, stream, data[at:])


def unpacked(what: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    """Reads the beginning of a payload. Raises ValueError where it is too short."""
    try:
        return what.unpack_from(payload)
    except struct.error as error:
        raise ValueError(str(error)) from error


class FrameReader:
    """Finds the frames in what comes."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """Returns those that are whole. Raises ValueError for what is no frame."""
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        found: list[Frame] = []
        while end - at >= _HEADER.size:
            num_bytes, kind, stream = _HEADER.unpack_from(data, at)
            if num_bytes > MAX_PAYLOAD_BYTES:
                raise ValueError(f"A frame of {num_bytes} bytes: {MAX_PAYLOAD_BYTES} at most.")
            begin = at + _HEADER.size
            if begin + num_bytes > end:
                break
            at = begin + num_bytes
            found.append((kind, stream, data[begin:at]))
        self._rest = data[at:]
        return found
