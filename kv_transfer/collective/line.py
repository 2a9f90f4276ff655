"""The connection beside a process group: who is at the other end, and what is said about a write.

A group only moves tensors. It neither knows nor proves who its ranks are, and what was sent into
it cannot be refused. So each writer has a line to each of its receivers, opened by the same
handshake as a TCP stream, on which headers and answers travel; a tensor is sent for a credit only.

    writer                            receiver
    (handshake; entries of the group's store; the ranks prove over the group that they are theirs)
    header, span table              ─▶ admitted?
                                    ◀─ CREDIT for each stageful it waits for, or REFUSED
    stagefuls, by the group         ═▶
                                    ◀─ LANDED or STOPPED
"""

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from cluster.errors import TransferFailed
from cluster.lateness import Limit
from cluster.mac import mac
from kv_transfer.conversion import NUM_BYTES, Conversion, decode_conversion, encode_conversion
from kv_transfer.geometry import Spans
from kv_transfer.tcp.handshake import Hello, greet, welcome
from kv_transfer.tcp.wire import Steps, Wire, finish, open_wire

GREETING_S = 2.0  # for a stranger to prove that it is none
MAX_SPANS = 1 << 20
MAX_ENTRY_BYTES = 1 << 16

_ENTRY = struct.Struct("<II")  # bytes of the key, of the value
_HEADER = struct.Struct(f"<QI{NUM_BYTES}s")  # epoch, number of spans, conversion
_NUMBER = np.dtype("<i8")


class LineAnswer(IntEnum):
    CREDIT = 1  # one more stageful is waited for
    REFUSED = 2  # none is: the epoch is not admitted, or not there
    LANDED = 3
    STOPPED = 4  # the epoch was revoked on the way: no more credits


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteHeader:
    epoch: int
    spans: Spans  # of the receiver's pool
    conversion: Conversion | None = None


class Line:
    """One end. For one thread at a time, but `close`. Whatever goes wrong is a TransferFailed."""

    def __init__(self, stream: socket.socket, stall_s: float) -> None:
        """`stall_s` is how long the other end may say nothing where it should."""
        self.is_closed = False
        self.stall_s = stall_s
        self._stream = stream

    def greet(self, own: Hello, key: bytes) -> Hello:
        """The writer's end: who listens there, proven."""
        return self._shake_hands(lambda wire: greet(wire, own, key), is_server=False)

    def welcome(self, own: Hello, key: bytes) -> Hello:
        """The receiver's end: who wants to write, proven."""
        return self._shake_hands(lambda wire: welcome(wire, own, key), is_server=True)

    def send(self, *parts: bytes) -> None:
        left, limit = memoryview(b"".join(parts)), Limit(self.stall_s)
        while left:
            left = left[self._step(limit, self._stream.send, left) :]

    def receive(self, num_bytes: int) -> bytes:
        """Exactly so many, in time."""
        limit = Limit(self.stall_s)
        received = bytearray(num_bytes)
        missing = memoryview(received)
        while missing:
            missing = missing[self._receive_some(missing, limit) :]
        return bytes(received)

    def close(self) -> None:
        """Ends whatever waits here, from any thread."""
        if not self.is_closed:
            self.is_closed = True
            with suppress(OSError):  # the other end was faster
                self._stream.shutdown(socket.SHUT_RDWR)
            self._stream.close()

    def send_header(self, header: WriteHeader) -> None:
        spans = header.spans
        if len(spans) > MAX_SPANS:
            raise TransferFailed(f"A write of {len(spans)} spans: {MAX_SPANS} are the most.")
        table = np.concatenate((spans.offsets, spans.sizes)).astype(_NUMBER)
        conversion = encode_conversion(header.conversion)
        self.send(_HEADER.pack(header.epoch, len(spans), conversion), table.tobytes())

    def receive_header(self) -> WriteHeader:
        """Waits for the next write as long as it takes."""
        first = bytearray(1)
        self._receive_some(memoryview(first), None)
        rest = self.receive(_HEADER.size - 1)
        epoch, num_spans, conversion = _HEADER.unpack(first + rest)
        if num_spans > MAX_SPANS:
            raise TransferFailed(f"A write of {num_spans} spans: {MAX_SPANS} are the most.")
        table = np.frombuffer(self.receive(2 * num_spans * _NUMBER.itemsize), dtype=_NUMBER)
        offsets, sizes = table.astype(np.int64).reshape(2, num_spans)
        spans = Spans(offsets=offsets, sizes=sizes)
        return WriteHeader(epoch=epoch, spans=spans, conversion=decode_conversion(conversion))

    def send_answer(self, answer: LineAnswer) -> None:
        self.send(bytes([answer]))

    def receive_answer(self) -> LineAnswer:
        [number] = self.receive(1)
        try:
            return LineAnswer(number)
        except ValueError as error:
            raise TransferFailed(f"The receiver answered {number}, which means nothing.") from error

    def send_entry(self, key: str, value: bytes) -> None:
        """An entry of the store by which the two make their group."""
        name = key.encode()
        self.send(_ENTRY.pack(len(name), len(value)), name, value)

    def receive_entry(self) -> tuple[str, bytes]:
        num_key_bytes, num_value_bytes = _ENTRY.unpack(self.receive(_ENTRY.size))
        if num_key_bytes + num_value_bytes > MAX_ENTRY_BYTES:
            raise TransferFailed("The other end sent an entry that is far too long.")
        key = self.receive(num_key_bytes).decode(errors="replace")
        return key, self.receive(num_value_bytes)

    def _shake_hands(self, say: Callable[[Wire], Steps[Hello]], *, is_server: bool) -> Hello:
        try:
            wire = open_wire(self._stream, None, is_server=is_server)
            return finish(wire, say(wire), Limit(GREETING_S))
        except OSError as error:  # the other end may be gone already
            raise _lost(error) from error

    def _receive_some(self, into: memoryview, limit: Limit | None) -> int:
        num_bytes = self._step(limit, self._stream.recv_into, into)
        if not num_bytes:
            raise TransferFailed("The other end closed the line.")
        return num_bytes

    def _step(
        self, limit: Limit | None, call: Callable[[memoryview], int], data: memoryview
    ) -> int:
        """Sends or receives some. Each pause is as long as the limit says, until it is over."""
        try:
            while True:
                self._stream.settimeout(None if limit is None else limit.pause_s())
                with suppress(TimeoutError):
                    return call(data)
        except OSError as error:
            raise _lost(error) from error


def rank_proof(key: bytes, role: str, writer: Hello, receiver: Hello) -> bytes:
    """Makes what a rank says first over the group, so that the group is known to be the line's."""
    return mac(key, "rank", role.encode(), writer.encode(), receiver.encode())


def _lost(error: OSError) -> TransferFailed:
    if isinstance(error, TimeoutError):
        return TransferFailed("The other end says nothing: it is frozen, or cut off.")
    return TransferFailed(f"The line is lost: {error.strerror or error}.")
