"""One trace a request: whether it is traced, which span of it is this process's, where spans go.

A span is made when it has ended, of times that are kept anyway. Knows no OpenTelemetry, which has
its door in `cluster/otlp.py`; the wire's form is the W3C's, `traceparent` and `tracestate`.
"""

import asyncio
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from cluster.config import check_range, masked
from cluster.errors import ConfigError, PenstockError, StartupError

TRACEPARENT: Final = "traceparent"  # the names of W3C's headers; in gRPC those of metadata
TRACESTATE: Final = "tracestate"
TRACERESPONSE: Final = "traceresponse"  # tells a caller which trace its request is
CANCELLED: Final = "CANCELLED"  # what a request ends with whose caller has left, or is late
_MAX_STATE_CHARS: Final = 512  # W3C asks that so many be passed on; more are left out
_PARENT: Final = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.{0,256})?"
)
_STATE: Final = re.compile(r"[\x20-\x7e]*")
_SAMPLED: Final = 1

Value = str | int | float | bool | tuple[str, ...]
Attributes = Mapping[str, Value | None]  # None: not said


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """Says which requests are traced, and who collects that."""

    # URL of who takes in OTLP over gRPC, of OpenTelemetry, Jaeger or Tempo; null: no tracing
    endpoint: str | None = None
    """To see where the time of single requests goes; needs the extra `tracing`."""
    # share of the requests whose callers trace nothing themselves; the router decides for all
    share: float = 0.01
    """1 to follow each request; 0 where callers alone are to decide."""

    def __post_init__(self) -> None:
        check_range(self, "share", at_least=0, at_most=1)
        if self.endpoint is not None:
            _check_url(self.endpoint)


class SpanKind(StrEnum):
    SERVER = "server"  # what a process did for another
    INTERNAL = "internal"  # a part of it


class TraceSpan(NamedTuple):
    """One that has ended. Times are nanoseconds of the Unix epoch."""

    name: str
    kind: SpanKind
    trace_id: int
    span_id: int
    parent_id: int | None
    state: str  # W3C's `tracestate`, as the caller sent it
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value]
    error: str | None  # its kind; None: there was none


@dataclass(slots=True, eq=False)
class SpanCounts:
    """Counts since the start."""

    num_exported: int = 0
    num_refused: int = 0  # nobody took them in; counted on the thread that hands them over
    num_crowded: int = 0  # more at a time than wait; counted by who takes them

    @property
    def num_lost(self) -> int:
        return self.num_refused + self.num_crowded


class SpanSink(Protocol):
    """Where spans go."""

    counts: SpanCounts

    def take(self, span: TraceSpan) -> None:
        """Never waits, and never fails."""
        ...

    def close(self) -> None:
        """Hands over what it has; may wait for seconds."""
        ...


class Parent(NamedTuple):
    """What a caller says of the trace that its request is a part of."""

    trace_id: int
    span_id: int
    is_sampled: bool
    state: str


def parent_of(traceparent: str | None, tracestate: str | None) -> Parent | None:
    """Reads the W3C's headers. What is none of these is ignored: it starts no trace and breaks
    none."""
    found = _PARENT.fullmatch(traceparent or "")
    if found is None:
        return None
    version, trace_id, span_id = found[1], int(found[2], 16), int(found[3], 16)
    is_known = version != "ff" and not (version == "00" and found[5])
    if not (is_known and trace_id and span_id):
        return None
    state = tracestate or ""
    is_fit = len(state) <= _MAX_STATE_CHARS and _STATE.fullmatch(state)
    is_sampled = bool(int(found[4], 16) & _SAMPLED)
    return Parent(trace_id, span_id, is_sampled, state if is_fit else "")


class Tracing:
    """Decides what is traced in this process."""

    def __init__(
        self, sink: SpanSink, share: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`share`: of requests of which nobody has decided yet; `clock`: that spans are told by."""
        self.sink = sink
        self._share = share
        self._clock = clock

    def begin(
        self, name: str, traceparent: str | None, tracestate: str | None
    ) -> "TracedRequest | None":
        """Begins this process's span of a request, whoever's it is below; None: it is not traced.
        A caller decides for those that it asks."""
        if not traceparent or (parent := parent_of(traceparent, tracestate)) is None:
            if random.random() >= self._share:
                return None
            return TracedRequest(self, name, random.getrandbits(128) or 1, None, "")
        if not parent.is_sampled:
            return None
        return TracedRequest(self, name, parent.trace_id, parent.span_id, parent.state)

    @property
    def epoch_s(self) -> float:
        """Gives the moment of the Unix epoch at which the clock was 0."""
        return time.time() - self._clock()

    def close(self) -> None:
        self.sink.close()


class TracedRequest:
    """A request that is traced, in one process: its span there, and those of its parts."""

    __slots__ = ("_epoch_s", "_name", "_parent_id", "_sink", "span_id", "state", "trace_id")

    def __init__(
        self, tracing: Tracing, name: str, trace_id: int, parent_id: int | None, state: str
    ) -> None:
        self._sink = tracing.sink
        self._epoch_s = tracing.epoch_s
        self._name = name
        self._parent_id = parent_id
        self.trace_id = trace_id
        self.span_id = _new_span_id()
        self.state = state

    @property
    def traceparent(self) -> str:
        """Says to others that what they do is a part of this process's span."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"

    def part(
        self, name: str, start: float, end: float, attributes: Attributes, error: str | None = None
    ) -> None:
        """Tells of a part, from and to a moment of the clock."""
        self._take(
            name, SpanKind.INTERNAL, _new_span_id(), self.span_id, start, end, attributes, error
        )

    def end(
        self, start: float, end: float, attributes: Attributes, error: str | None = None
    ) -> None:
        """Tells of all that this process did."""
        self._take(
            self._name,
            SpanKind.SERVER,
            self.span_id,
            self._parent_id,
            start,
            end,
            attributes,
            error,
        )

    def _take(
        self,
        name: str,
        kind: SpanKind,
        span_id: int,
        parent_id: int | None,
        start: float,
        end: float,
        attributes: Attributes,
        error: str | None,
    ) -> None:
        self._sink.take(
            TraceSpan(
                name=name,
                kind=kind,
                trace_id=self.trace_id,
                span_id=span_id,
                parent_id=parent_id,
                state=self.state,
                start_ns=int(1e9 * (self._epoch_s + start)),
                end_ns=int(1e9 * (self._epoch_s + end)),
                attributes={key: said for key, said in attributes.items() if said is not None},
                error=error,
            )
        )


def open_tracing(
    settings: TraceSettings, *, service: str, instance: str, share: float = 0.0
) -> Tracing | None:
    """None where nobody collects. Raises StartupError where OpenTelemetry is not installed."""
    if settings.endpoint is None:
        return None
    try:
        from cluster.otlp import OtlpSink  # here: its libraries take 0.2 s to import, if they are
    except ImportError as error:
        raise StartupError(
            f"'tracing.endpoint' is '{settings.endpoint}' and OpenTelemetry is not installed"
            f" ({error}): install penstock[tracing] at every process, or leave the endpoint out."
        ) from error
    return Tracing(OtlpSink(settings.endpoint, service=service, instance=instance), share)


def kind_of(error: BaseException | None) -> str | None:
    """Names what a span ended with, as `error.type`; never what it said."""
    match error:
        case None:
            return None
        case PenstockError():
            return error.reason
        case asyncio.CancelledError():
            return CANCELLED
        case BaseExceptionGroup():
            return kind_of(error.exceptions[0])
    return type(error).__name__


def _new_span_id() -> int:
    return random.getrandbits(64) or 1


def _check_url(text: str) -> None:
    try:
        url = urlsplit(text)
        is_bare = not (url.username or url.path.strip("/") or url.query or url.fragment)
        is_whole = url.scheme in ("http", "https") and bool(url.hostname and url.port) and is_bare
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ConfigError(
            f"'endpoint' is '{masked(text)[:80]}': give http://HOST:PORT, or https://, where OTLP"
            " comes in over gRPC; port 4317 in most installations."
        )
