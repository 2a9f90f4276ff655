"""Frames of authenticated writers, from their streams into our pool."""

from dataclasses import dataclass
from functools import partial
from selectors import EVENT_READ

import numpy as np

from cluster.types import Incarnation
from kv_transfer.admissions import Admission, Admissions
from kv_transfer.conversion import Conversion
from kv_transfer.layout import Spans
from kv_transfer.span_copy import RowScatter
from kv_transfer.tcp_frame import (
    HEADER,
    TRIAL_EPOCH,
    Answer,
    Header,
    decode_header,
    decode_spans,
    lie_in,
    views_of,
)
from kv_transfer.tcp_wire import Steps, Views, Wire, receive_exactly, send_all

DRAIN_BYTES = 256 * 1024
WAKE_BYTES = 512 * 1024  # of a frame, worth a turn: while we sleep the sender is quicker


@dataclass(slots=True, eq=False)
class TcpCounters:
    """Of what came in. A write is one frame or several."""

    num_strangers: int = 0  # connections that never proved who they are
    num_lost_streams: int = 0  # of peers that went, or broke the protocol
    num_refused_frames: int = 0  # not admitted, or not there
    num_revoked_frames: int = 0  # on their way


class Landing:
    """For one thread; any number of streams side by side."""

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
        """For ever: ends with OSError, or with RemoteProtocolError."""
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
        self, wire: Wire, header: Header, spans: Spans, admission: Admission | None
    ) -> Steps[Answer]:
        """One frame's bytes: all into the pool, or what is not allowed to nowhere."""
        num_left = header.num_bytes
        if header.epoch == TRIAL_EPOCH:
            yield from self._discard(wire, num_left)
            return Answer.LANDED
        if admission and lie_in(spans, len(self._memory)) and admission.allows(spans):
            if header.conversion is not None:
                data = yield from receive_exactly(wire, header.num_bytes)
                has_landed = self._land_converted(data, spans, header.conversion, admission)
                return Answer.LANDED if has_landed else self._refused()
            num_left = yield from self._land(wire, spans, admission)
        if not num_left:
            return Answer.LANDED
        yield from self._discard(wire, num_left)
        if num_left == header.num_bytes:
            return self._refused()
        self._counters.num_revoked_frames += 1
        return Answer.REVOKED

    def _refused(self) -> Answer:
        self._counters.num_refused_frames += 1
        return Answer.REFUSED

    def _land(self, wire: Wire, spans: Spans, admission: Admission) -> Steps[int]:
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
        self, data: bytes, spans: Spans, conversion: Conversion, admission: Admission
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
