"""The receiving end: listens for writers, and lets land what is admitted.

One thread accepts; each connected writer has one of its own, so that a writer that is frozen
holds up nobody else.
"""

import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from cluster.errors import ConfigError, TransferFailed
from cluster.types import Incarnation
from kv_transfer.admissions import Admissions, LandingAdmission
from kv_transfer.collective.line import Line, LineAnswer, WriteHeader
from kv_transfer.collective.process_group import ProcessGroup, Wait
from kv_transfer.geometry import Spans
from kv_transfer.staging import NUM_STAGES, Cut, Stage, on_own_stream, stagefuls
from kv_transfer.tcp.frame import lie_in

MAX_STRANGERS = 32  # who have not yet proven that they are none
PAUSE_S = 0.5  # without accepting, where that fails

logger = logging.getLogger(__name__)

# Takes a stranger's line: who it is, and the group with it. Raises TransferFailed.
Welcome = Callable[[Line], tuple[Incarnation, ProcessGroup]]


class CollectiveReceiver:
    """Listens from the moment it is made until `close`."""

    def __init__(self, host: str, pool: Tensor, welcome: Welcome, stall_s: float) -> None:
        """Raises ConfigError where it cannot listen there."""
        self.admissions = Admissions()
        self._listener = _listen(host)
        self._pool = pool
        self._welcome = welcome
        self._stall_s = stall_s
        self._lines: dict[Line, threading.Thread] = {}
        self._lock = threading.Lock()  # of the lines
        self._strangers = threading.BoundedSemaphore(MAX_STRANGERS)
        self._closed = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, name="kv-accept", daemon=True)
        self._acceptor.start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def close(self) -> None:
        """Ends every line; returns when nothing can land any more."""
        with self._lock:
            self._closed.set()
            lines = dict(self._lines)
        if self._acceptor.is_alive():
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        for line in lines:
            line.close()
        for thread in lines.values():
            thread.join()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                stream, _ = self._listener.accept()
            except OSError:  # closed, or no file descriptor is left
                self._closed.wait(PAUSE_S)
                continue
            line = Line(stream, self._stall_s)
            thread = threading.Thread(target=self._serve, args=(line,), name="kv-line", daemon=True)
            with self._lock:
                if self._closed.is_set() or not self._strangers.acquire(blocking=False):
                    line.close()
                else:
                    self._lines[line] = thread
                    thread.start()

    def _serve(self, line: Line) -> None:
        """The thread of one line, whoever is at its other end."""
        try:
            writer, group = self._welcome_stranger(line)
            on_own_stream(self._pool.device)
            lander = _Lander(line, group, self._pool, writer, self.admissions)
            while True:
                line.send_answer(lander.take(line.receive_header()))
        except TransferFailed as error:
            logger.debug("A line ends: %s", error)
        finally:
            line.close()
            with self._lock:
                self._lines.pop(line)

    def _welcome_stranger(self, line: Line) -> tuple[Incarnation, ProcessGroup]:
        try:
            return self._welcome(line)
        finally:
            self._strangers.release()


class _Lander:
    """Receives the stagefuls of one writer's writes."""

    def __init__(
        self,
        line: Line,
        group: ProcessGroup,
        pool: Tensor,
        writer: Incarnation,
        admissions: Admissions,
    ) -> None:
        self._line = line
        self._group = group
        self._pool_bytes = len(pool)
        self._writer = writer
        self._admissions = admissions
        self._idle = deque(Stage(pool, group.device, group.stage_bytes) for _ in range(NUM_STAGES))

    def take(self, header: WriteHeader) -> LineAnswer:
        """One write. Raises TransferFailed when the line ends."""
        admission = self._admissions.find(self._writer, header.epoch)
        if admission is None or not _fits(header, self._pool_bytes):
            return LineAnswer.REFUSED
        if not admission.allows(header.spans):
            return LineAnswer.REFUSED
        return LineAnswer.LANDED if self._land(header, admission) else LineAnswer.STOPPED

    def _land(self, header: WriteHeader, admission: LandingAdmission) -> bool:
        """Tells whether all of it landed. Where it may not land any more there are no more credits,
        but what was credited is received: the two ends stay in step."""
        cut = Cut.of(self._group.stage_bytes, header.conversion)
        ahead = stagefuls(header.spans, cut.destination)
        awaited: deque[_Arrival] = deque()
        has_landed = True
        while True:
            while has_landed and self._idle and (some := next(ahead, None)) is not None:
                num_wire_bytes = some.num_bytes * cut.wire // cut.destination
                awaited.append(self._awaited(self._idle.popleft(), some, num_wire_bytes))
            if not awaited:
                return has_landed
            has_landed &= self._landed(awaited.popleft(), header, admission)

    def _awaited(self, stage: Stage, spans: Spans, num_wire_bytes: int) -> "_Arrival":
        wait = self._group.receive(stage.wire(num_wire_bytes))
        self._line.send_answer(LineAnswer.CREDIT)
        return _Arrival(stage, spans, num_wire_bytes, wait)

    def _landed(
        self, arrival: "_Arrival", header: WriteHeader, admission: LandingAdmission
    ) -> bool:
        stage, spans, num_wire_bytes, wait = arrival
        wait()
        if header.conversion is not None:
            stage.put(header.conversion.decode(stage.on_host(num_wire_bytes)))
        has_landed = admission.land(partial(stage.scatter, spans))
        self._idle.append(stage)
        return has_landed


class _Arrival(NamedTuple):
    stage: Stage
    spans: Spans
    num_wire_bytes: int
    wait: Wait


def _fits(header: WriteHeader, pool_bytes: int) -> bool:
    """Tells whether its spans lie in the pool, are no more than it, and are of whole rows."""
    spans, conversion = header.spans, header.conversion
    is_sane = (spans.sizes > 0) & (spans.sizes <= pool_bytes)
    if conversion is not None:
        is_sane &= spans.sizes % conversion.destination_row_bytes == 0
    return bool(is_sane.all()) and lie_in(spans, pool_bytes) and spans.num_bytes <= pool_bytes


def _listen(host: str) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, 0), family=family)
    except OSError as error:
        raise ConfigError(f"KV cannot be received on '{host}': {error}.") from error
