"""The thread that takes in what peers write: it listens, greets, and runs every stream's steps.

A stranger costs a socket for two seconds at most, and there is room for a few: whoever does not
prove at once that it has the cluster's key makes room for the next one.
"""

import logging
import selectors
import socket
import threading
import time
from functools import partial
from selectors import EVENT_READ

from cluster.errors import TransferFailed
from cluster.lateness import AttentiveClock
from cluster.types import Incarnation
from kv_transfer.admissions import Admissions
from kv_transfer.tcp_handshake import Hello, welcome
from kv_transfer.tcp_landing import Landing, TcpCounters
from kv_transfer.tcp_tls import Tls
from kv_transfer.tcp_wire import Steps, Wire, open_wire

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


class Receiver:
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
        """What it had begun never lands."""
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
