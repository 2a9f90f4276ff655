"""The writer's end of a line: gathers, waits for a credit, sends, until the receiver has all."""

import time
from collections import deque
from itertools import cycle

import xxhash
from torch import Tensor

from cluster.errors import TransferFailed
from kv_transfer.collective.line import Line, LineAnswer, WriteHeader
from kv_transfer.collective.process_group import ProcessGroup, Wait
from kv_transfer.conversion import Bytes, Conversion
from kv_transfer.geometry import SpanPairs, Spans
from kv_transfer.staging import NUM_STAGES, Cut, Stage, stagefuls
from kv_transfer.transport import Landed, WriteRefused


class WriteStopped(TransferFailed):
    """The receiver revoked the grant while the write was on its way."""


class LineWriter:
    """Serves one thread at a time, but `close`. After an error other than WriteRefused and
    WriteStopped the two ends are out of step: close it."""

    def __init__(self, line: Line, group: ProcessGroup, pool: Tensor) -> None:
        self._line = line
        self._group = group
        self._stages = [Stage(pool, group.device, group.stage_bytes) for _ in range(NUM_STAGES)]

    @property
    def is_closed(self) -> bool:
        return self._line.is_closed

    def write(self, pairs: SpanPairs, *, epoch: int, digest: bool) -> Landed:
        begin = time.perf_counter()
        self._line.send_header(
            WriteHeader(epoch=epoch, spans=pairs.destination_spans, conversion=pairs.conversion)
        )
        value = self._send(pairs, digest)
        self._hear(LineAnswer.LANDED)
        seconds = time.perf_counter() - begin
        return Landed(num_bytes=pairs.num_bytes, seconds=seconds, digest=value)

    def close(self) -> None:
        """Closes it, from any thread."""
        self._line.close()
        self._group.abort()

    def _send(self, pairs: SpanPairs, digest: bool) -> int | None:
        hasher = xxhash.xxh3_64() if digest else None
        sent: deque[Wait] = deque()
        spans = Spans(offsets=pairs.source, sizes=pairs.sizes)
        ahead = stagefuls(spans, Cut.of(self._group.stage_bytes, pairs.conversion).source)
        for stage, some in zip(cycle(self._stages), ahead, strict=False):
            if len(sent) == NUM_STAGES:
                sent.popleft()()  # this stage's last use
            run = _converted(stage, stage.gather(some), pairs.conversion)
            self._hear(LineAnswer.CREDIT)
            sent.append(self._group.send(run))
            if hasher is not None:
                hasher.update(_arriving(stage.on_host(len(run)), pairs.conversion))
        for wait in sent:
            wait()
        return None if hasher is None else int(hasher.intdigest())

    def _hear(self, expected: LineAnswer) -> None:
        answer = self._line.receive_answer()
        if answer is LineAnswer.REFUSED:
            raise WriteRefused("The receiver does not admit this write: its grant is over.")
        if answer is LineAnswer.STOPPED:
            raise WriteStopped("The receiver took its grant back while the write was on its way.")
        if answer is not expected:
            raise TransferFailed(f"The receiver answered {answer.name}, not {expected.name}.")


def _converted(stage: Stage, run: Tensor, conversion: Conversion | None) -> Tensor:
    return run if conversion is None else stage.put(conversion.encode(stage.on_host(len(run))))


def _arriving(wire: Bytes, conversion: Conversion | None) -> memoryview:
    """Gives what will lie in the receiver's pool: that is what is digested."""
    return (wire if conversion is None else conversion.decode(wire)).data
