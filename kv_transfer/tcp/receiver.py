"""The thread that takes in what peers write: it listens, greets, and runs every stream's steps.

A stranger costs a socket for two seconds at most, and there is room for a few: whoever does not
prove at once that it has the cluster's key makes room for the next one. What those
write lands in our pool, frame by frame.
"""

import logging
import selectors
import socket
import threading
import time
from dataclasses import dataclass
from functools import partial
from selectors import EVENT_READ

import numpy as np

from cluster.errors import TransferFailed
from cluster.lateness import AttentiveClock
from cluster.types import Incarnation
from kv_transfer.admissions import Admissions, LandingAdmission
from kv_transfer.conversion import Conversion
from kv_transfer.geometry import Spans
from kv_transfer.span_copy import RowScatter
from kv_transfer.tcp.frame import (
    HEADER,
    TRIAL_EPOCH,
    FrameAnswer,
    Header,
    decode_header,
    decode_spans,
    lie_in,
    views_of,
)
from kv_transfer.tcp.handshake import Hello, welcome
from kv_transfer.tcp.wire import Steps, Tls, Views, Wire, open_wire, receive_exactly, send_all

GREETING_S = 2.0
MAX_STRANGERS = 256  # at a time (a fleet may join at once); one more, and the oldest goes
MAX_STREAMS = 32  # of one writer; one more, and its oldest goes
PAUSE_S = 0.5  # without accepting, where the process has no file descriptor left

logger = logging.getLogger(__name__)


class _Connection:
    """Somebody who dialled."""

    __slots__ = ("deadline", "steps", "wire", "writer")

    steps: Steps[None]

    def __init__(self, wire: Wire, deadline: float) -> None:
        self.wire = wire
        self.writer: Incarnation | None = None  # a stranger, until it is proven
        self.deadline = deadline  # for that, by the receiver's attention


class TcpReceiver:
    """Owns the listening socket and all that was accepted."""

    def __init__(
        self,
        memory: memoryview,
        listening: socket.socket,
        *,
        incarnation: Incarnation,
        key: bytes,
        tls: Tls | None,
    ) -> None:
        self.counters = TcpCounters()
        self.admissions = Admissions()
        self._landing = Landing(memory, self.admissions, self.counters)
        self._num_bytes = len(memory)
        self._incarnation = incarnation
        self._key = key
        self._tls = tls
        self._strangers: dict[_Connection, None] = {}  # oldest first
        self._streams: dict[Incarnation, list[_Connection]] = {}  # oldest first
        self._attention = AttentiveClock()  # while there are strangers
        self._accepts_at = 0.0
        self.is_closed = False
        self._listening = listening
        self._selector = selectors.DefaultSelector()
        listening.setblocking(False)
        self._selector.register(listening, EVENT_READ, self._accept)
        self._wake, woken = socket.socketpair()
        self._selector.register(woken, EVENT_READ, partial(woken.recv, 1))
        self._thread = threading.Thread(target=self._run, name="kv-tcp-receiver", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Once it returns, nothing lands any more."""
        if not self.is_closed:
            self.is_closed = True
            self._wake.close()
            self._thread.join()

    def _run(self) -> None:
        while not self.is_closed:
            for key, _ in self._selector.select(self._timeout_s()):
                key.data()
            self._expire()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._listening.close()
        self._selector.close()

    def _timeout_s(self) -> float | None:
        pauses = []
        if self._strangers:
            left_s = next(iter(self._strangers)).deadline - self._attention.now()
            pauses.append(self._attention.pause_s(left_s))
        if self._accepts_at:
            pauses.append(self._accepts_at - time.monotonic())
        return max(0.0, min(pauses)) if pauses else None

    def _expire(self) -> None:
        now = self._attention.now()
        while self._strangers and (oldest := next(iter(self._strangers))).deadline <= now:
            self._drop(oldest)
        if self._accepts_at and self._accepts_at <= time.monotonic():
            self._accepts_at = 0.0
            self._selector.register(self._listening, EVENT_READ, self._accept)

    def _accept(self) -> None:
        try:
            stream, _ = self._listening.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone again
        except OSError as error:
            logger.warning("No KV connection can be accepted for now: %s.", error)
            self._accepts_at = time.monotonic() + PAUSE_S
            self._selector.unregister(self._listening)
            return
        try:
            wire = open_wire(stream, self._tls, is_server=True)
        except OSError:
            stream.close()
            return
        if not self._strangers:
            self._attention = AttentiveClock()
        connection = _Connection(wire, self._attention.now() + GREETING_S)
        connection.steps = self._steps(connection)
        if len(self._strangers) == MAX_STRANGERS:
            self._drop(next(iter(self._strangers)))
        self._strangers[connection] = None
        self._selector.register(wire, EVENT_READ, partial(self._step, connection))

    def _steps(self, connection: _Connection) -> Steps[None]:
        own = Hello(incarnation=self._incarnation, num_bytes=self._num_bytes)
        hello = yield from welcome(connection.wire, own, self._key)
        self._settle(connection, hello.incarnation)
        yield from self._landing.take_frames(connection.wire, hello.incarnation)

    def _settle(self, connection: _Connection, writer: Incarnation) -> None:
        """It is no stranger any more."""
        del self._strangers[connection]
        connection.writer = writer
        streams = self._streams.setdefault(writer, [])
        streams.append(connection)
        if len(streams) > MAX_STREAMS:
            self._drop(streams[0])

    def _step(self, connection: _Connection) -> None:
        if connection.wire.fileno() < 0:
            return  # dropped a moment ago, for another one
        try:
            event = next(connection.steps)
        except (OSError, TransferFailed) as error:
            logger.debug("A KV stream of %s ends: %s", connection.writer or "a stranger", error)
            self._drop(connection)
        except Exception:  # one stream's bug must not end the others'
            logger.exception("A KV stream of %s ends by a bug.", connection.writer)
            self._drop(connection)
        else:
            key = self._selector.get_key(connection.wire)
            if event != key.events:
                self._selector.modify(connection.wire, event, key.data)

    def _drop(self, connection: _Connection) -> None:
        """Drops it: what it had begun never lands."""
        writer = connection.writer
        if writer is None:
            del self._strangers[connection]
            self.counters.num_strangers += 1
        else:
            self._streams[writer].remove(connection)
            if not self._streams[writer]:
                del self._streams[writer]
            self.counters.num_lost_streams += 1
        self._selector.unregister(connection.wire)
        connection.wire.close()


DRAIN_BYTES = 256 * 1024
WAKE_BYTES = 512 * 1024  # of a frame, worth a turn: while we sleep the sender is quicker


@dataclass(slots=True, eq=False)
class TcpCounters:
    """Counts what came in. A write is one frame or several."""

    num_strangers: int = 0  # connections that never proved who they are
    num_lost_streams: int = 0  # of peers that went, or broke the protocol
    num_refused_frames: int = 0  # not admitted, or not there
    num_revoked_frames: int = 0  # on their way


class Landing:
    """Serves one thread; any number of streams side by side."""

    def __init__(
        self,
        memory: memoryview,
        admissions: Admissions,
        counters: TcpCounters,
    ) -> None:
        self._memory = memory
        self._admissions = admissions
        self._counters = counters
        self._drain = memoryview(bytearray(DRAIN_BYTES))

    def take_frames(self, wire: Wire, writer: Incarnation) -> Steps[None]:
        """Takes frames for ever: ends with OSError, or with RemoteProtocolError."""
        while True:
            header = decode_header((yield from receive_exactly(wire, HEADER.size)))
            table = yield from receive_exactly(wire, header.num_table_bytes)
            spans = decode_spans(header, table)
            admission = self._admissions.find(writer, header.epoch)
            answer = yield from self._take(wire, header, spans, admission)
            yield from send_all(wire, bytes([answer]))
            if not wire.has_more:
                yield EVENT_READ  # the other streams' turn

    def _take(
        self, wire: Wire, header: Header, spans: Spans, admission: LandingAdmission | None
    ) -> Steps[FrameAnswer]:
        """One frame's bytes: all into the pool, or what is not allowed to nowhere."""
        num_left = header.num_bytes
        if header.epoch == TRIAL_EPOCH:
            yield from self._discard(wire, num_left)
            return FrameAnswer.LANDED
        if admission and lie_in(spans, len(self._memory)) and admission.allows(spans):
            if header.conversion is not None:
                data = yield from receive_exactly(wire, header.num_bytes)
                has_landed = self._land_converted(data, spans, header.conversion, admission)
                return FrameAnswer.LANDED if has_landed else self._refused()
            num_left = yield from self._land(wire, spans, admission)
        if not num_left:
            return FrameAnswer.LANDED
        yield from self._discard(wire, num_left)
        if num_left == header.num_bytes:
            return self._refused()
        self._counters.num_revoked_frames += 1
        return FrameAnswer.REVOKED

    def _refused(self) -> FrameAnswer:
        self._counters.num_refused_frames += 1
        return FrameAnswer.REFUSED

    def _land(self, wire: Wire, spans: Spans, admission: LandingAdmission) -> Steps[int]:
        """Returns how many bytes it left on the stream, because they were revoked."""
        views = Views(views_of(self._memory, spans.offsets, spans.sizes))
        receive = partial(_receive, wire, views)
        while views.num_bytes and admission.land(receive):
            if views.num_bytes and not wire.has_more:
                wire.expect(min(views.num_bytes, WAKE_BYTES))
                yield EVENT_READ
        wire.expect(1)
        return views.num_bytes

    def _land_converted(
        self, data: bytes, spans: Spans, conversion: Conversion, admission: LandingAdmission
    ) -> bool:
        """All of a frame at once, unless it is revoked."""
        rows = conversion.decode(np.frombuffer(data, dtype=np.uint8))
        pool = np.frombuffer(self._memory, dtype=np.uint8)
        return admission.land(partial(RowScatter(pool, spans, conversion).scatter, rows))

    def _discard(self, wire: Wire, num_bytes: int) -> Steps[None]:
        while num_bytes:
            num_bytes -= wire.receive([self._drain[:num_bytes]])
            if num_bytes and not wire.has_more:
                wire.expect(min(num_bytes, WAKE_BYTES))
                yield EVENT_READ
        wire.expect(1)


def _receive(wire: Wire, views: Views) -> None:
    views.advance(wire.receive(views.some()))
