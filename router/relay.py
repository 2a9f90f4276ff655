"""One request placed, and every message of its answer passed on as it came.

Owns the choice of another worker while nothing has been sent, and the true count of what was.
Knows no text and no front door.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import DecodeError

from cluster.blame import DEADLINE_MARGIN_S
from cluster.codec import placement_to_bytes
from cluster.errors import (
    CallerError,
    DeadlineExceeded,
    Draining,
    NoWorker,
    PeerError,
    PenstockError,
    ResourceError,
    StreamInterrupted,
    WorkerLost,
)
from cluster.types import Role, WorkerAddress, WorkerId
from router.caller import Caller
from router.decision import Decision
from router.flight import Ask, Begun, Ended, Left
from router.links import Links
from router.metrics.requests import RequestCounts
from router.placer import Placer
from router.pool import Refusal
from router.reader import Reader
from router.records import Fate
from router.request_line import RequestLine
from router.sent import Sent
from router.tries import Tries
from router.waiting import Waiting, WaitingRoom

logger = logging.getLogger(__name__)

_MAX_ERROR = 300  # letters of an error in a record
_TOKEN_BYTES = 48  # that a token of a request holds here, at most: its hash, and as sent and got

Metadata = Sequence[tuple[str, str]]


class RoutedRequest(NamedTuple):
    """A request ready to be placed: ids, hashes, every default resolved, the seed drawn."""

    ask: Ask
    message: bytes  # its `DecodeRequest`, as far as that is known before it is placed


@dataclass(slots=True, eq=False, kw_only=True)
class _Answer:
    """One answer in the making: what is asked, what has left for whom, and who tried."""

    routed: RoutedRequest
    caller: Caller
    echo: Metadata
    line: RequestLine
    reader: Reader
    sent: Sent
    tries: Tries


@dataclass(slots=True, eq=False)
class RelayCounters:
    """Counts since the start."""

    num_messages: int = 0
    num_tokens: int = 0


@dataclass(slots=True, eq=False)
class Relay:
    placer: Placer
    links: Links
    waiting: WaitingRoom
    counts: RequestCounts
    clock: Callable[[], float] = time.monotonic
    unread_s: float = 60.0  # so long a client may leave a message unread
    counters: RelayCounters = field(default_factory=RelayCounters)

    async def serve(
        self, routed: RoutedRequest, caller: Caller, line: RequestLine, echo: Metadata = ()
    ) -> None:
        """Streams the answer into `caller`, and fills the log's line. If a worker fails another
        goes on after what was sent: draws are keyed by position, so the rest is the rest that
        would have come."""
        sent, fate, said = Sent(), Fate.FINISHED, ""
        line.sent = sent
        reader = Reader(caller, self.unread_s)
        answer = _Answer(
            routed=routed,
            caller=caller,
            echo=echo,
            line=line,
            reader=reader,
            sent=sent,
            tries=Tries(self.placer.pool),
        )
        try:
            async with reader:
                await self._serve_moving(answer)
        except BaseException as error:
            fate, said = _fate(error, caller), str(error)[:_MAX_ERROR]
            if not reader.has_gone:
                raise
            fate = Fate.CANCELLED
            raise unread(self.unread_s, sent) from error
        finally:
            ended = Ended(fate, caller.tokens_emitted, said)
            line.fate = fate
            line.record = self.placer.told(routed.ask.request_id, ended, self.clock())
            self.waiting.changed()

    async def _serve_moving(self, answer: _Answer) -> None:
        sent, line, tries = answer.sent, answer.line, answer.tries
        while True:
            decision = await self._place(answer)
            line.placement, line.num_tries = decision.placement, line.num_tries + 1
            decode = decision.placement.decode
            worker = self.placer.pool.address(decode)
            assert worker is not None, "it has just been chosen"
            try:
                await self._serve_by(decision, worker, answer)
                return
            except (WorkerLost, ResourceError) as error:
                if sent.is_finished:
                    return  # the client has all of it
                failure = _interrupted(error, decode, sent) if sent.num_messages else error
            request_id = answer.routed.ask.request_id
            self.placer.told(request_id, Left(), self.clock())
            self.waiting.changed()
            if not isinstance(failure, ResourceError):
                self.placer.pool.fail(decode, self.clock())
            logger.warning("%s: not served by %s: %s", request_id, decode, failure)
            tries.failed(worker, failure)

    async def _place(self, answer: _Answer) -> Decision:
        """Waits for a worker that is expected back, where no other is left or others wait, too.
        Raises NoWorker, or what the last worker tried said, when nobody is."""
        ask, tries, place = answer.routed.ask, answer.tries, self.placer.place
        trace, asked_at = answer.line.trace, self.clock()
        answer.caller.phase = "decode" if answer.sent.num_messages else "prefill"
        waiting = None if self.waiting.is_empty else self._waiting(answer)
        while True:
            if waiting is not None:
                try:
                    await self.waiting.turn(waiting)
                except NoWorker as error:
                    raise tries.failure or error from None
            began = time.perf_counter()
            decision = place(ask, self.clock(), tries.excluded)
            self.counts.decision.add(time.perf_counter() - began)
            if decision is not None:
                if trace is not None:
                    trace.placed(asked_at, self.clock(), decision.placement)
                return decision
            waiting = waiting or self._waiting(answer)

    def _waiting(self, answer: _Answer) -> Waiting:
        """Raises why it cannot wait for a worker."""
        ask, tries = answer.routed.ask, answer.tries
        now, pool, failure = self.clock(), self.placer.pool, tries.failure
        start_s = pool.cold_start.wait_s(now)
        # The last one goes: another is started for who waits.
        is_gone = start_s > 0.0 and isinstance(failure, Draining)
        is_refused = isinstance(failure, ResourceError) and not is_gone
        is_anyone_expected = pool.expects(Role.DECODE, tries.excluded, now)
        if is_refused or not (is_anyone_expected or pool.snapshot(now).decode):
            raise failure or _no_worker(pool.refusals(now))
        service = self.placer.taken_on(ask, now)
        num_bytes = _TOKEN_BYTES * (ask.num_prompt_tokens + answer.sent.num_tokens)
        if failure is None:
            self.waiting.check_room(num_bytes)
        return Waiting(
            due_at=ask.arrived_at + service.ttft_s,
            since=now,
            until=now + max(min(service.patience_s, pool.absences.return_s), start_s),
            num_bytes=num_bytes,
            num_choices=ask.num_choices,
            tries=tries,
        )

    async def _serve_by(self, decision: Decision, worker: WorkerAddress, answer: _Answer) -> None:
        """One try."""
        sent, caller, reader = answer.sent, answer.caller, answer.reader
        num_before, num_tokens_before = sent.num_messages, caller.tokens_emitted
        request_id, decode = answer.routed.ask.request_id, worker.worker_id

        async def pass_on(data: bytes) -> None:
            if sent.num_messages == num_before:
                data = await self._begin(data, decode, answer)
            else:
                sent.add(data)
            await reader.send(data)

        try:
            request = answer.routed.message + self._rest_of_request(decision, worker, answer)
            if answer.line.trace is not None:
                request += answer.line.trace.rest_of_request
            await self.links.get(decode).generate(request, caller.remaining_s, pass_on)
        except DeadlineExceeded as error:
            raise _deadline(error, caller, sent) from error
        except WorkerLost:
            has_begun, pool = sent.num_messages > num_before, self.placer.pool
            had_it = has_begun or pool.is_reported(request_id, decode)
            if had_it and not pool.is_leaving(decode):
                answer.tries.died(request_id, decode, sent.num_tokens)
            raise
        finally:
            caller.tokens_emitted = sent.num_tokens
            self.counters.num_messages += sent.num_messages - num_before
            self.counters.num_tokens += caller.tokens_emitted - num_tokens_before
        if not sent.is_finished:
            raise WorkerLost(f"Worker '{decode}' ended the answer too early.")

    async def _begin(self, data: bytes, decode: WorkerId, answer: _Answer) -> bytes:
        """A worker's first message: it computes no prompt any more."""
        sent, is_first = answer.sent, not answer.sent.num_messages
        try:
            data = sent.add_first(data)
        except DecodeError as error:
            raise WorkerLost(f"Worker '{decode}' sent bytes that are no answer.") from error
        begun = Begun(sent.num_cached_tokens)
        self.placer.told(answer.routed.ask.request_id, begun, self.clock())
        if is_first:
            answer.caller.phase = "decode"
            if answer.echo:
                await answer.caller.send_metadata(*answer.echo)
        return data

    def _rest_of_request(self, decision: Decision, decode: WorkerAddress, answer: _Answer) -> bytes:
        ask, sent, placement = answer.routed.ask, answer.sent, decision.placement
        address = self.placer.pool.address
        return placement_to_bytes(
            decode,
            prefill=address(placement.prefill) if placement.prefill else None,
            source=address(placement.source) if placement.source else None,
            num_source_tokens=placement.num_source_tokens,
            emitted=sent.emitted(ask.num_choices) if answer.caller.tokens_emitted else (),
            due_s=decision.due_s,
            router_s=self.clock() - ask.arrived_at,
        )


def _fate(error: BaseException, caller: Caller) -> Fate:
    """Tells if it is anybody's fault but the caller's, who may be gone or have asked wrongly."""
    if isinstance(error, asyncio.CancelledError):
        left_s = caller.remaining_s
        is_late = left_s is not None and left_s < DEADLINE_MARGIN_S
        return Fate.FAILED if is_late else Fate.CANCELLED
    is_callers = isinstance(error, CallerError) or type(error) is PeerError
    return Fate.CANCELLED if is_callers else Fate.FAILED


def _interrupted(error: PenstockError, decode: WorkerId, sent: Sent) -> StreamInterrupted:
    return StreamInterrupted(
        f"Worker '{decode}' failed after {sent.num_tokens} tokens were sent: {error.message}",
        tokens_emitted=sent.num_tokens,
    )


def unread(limit_s: float, sent: Sent) -> StreamInterrupted:
    """Makes what is told to who does not read."""
    return StreamInterrupted(
        f"Nobody read this answer for {limit_s:g} s, and {sent.num_tokens} tokens were sent: read"
        " each message when it comes, or ask for fewer tokens.",
        tokens_emitted=sent.num_tokens,
    )


def _deadline(error: DeadlineExceeded, caller: Caller, sent: Sent) -> DeadlineExceeded:
    """The worker knows the phase, unless it was our own timer that ended the call."""
    phase = error.metadata.get("phase", "call")
    return DeadlineExceeded(
        caller.phase if phase == "call" else phase, tokens_emitted=sent.num_tokens
    )


def _no_worker(refusals: list[Refusal]) -> NoWorker:
    reasons = [f"'{r.worker}': {r.reason}" for r in refusals if r.role is Role.DECODE]
    said = "; ".join(sorted(reasons)) or "none has registered"
    return NoWorker(f"No decode worker serves ({said}).")
