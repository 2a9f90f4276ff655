"""One request placed, and every message of its answer passed on as it came.

Owns the choice of another worker while nothing has been sent, and the true count of what was.
Knows no text and no front door.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from google.protobuf.message import DecodeError

from cluster.codec import decode_request_to_pb
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
from cluster.rpc import DEADLINE_MARGIN_S, Call
from cluster.types import ComputeRequest, GrainHash, Role, RoutingHints, WorkerId
from router.links import Links
from router.placer import DEFAULT_TENANT, NO_HINTS, Ask, Placer
from router.policy import Decision
from router.pool import Refusal
from router.reader import Reader
from router.records import Fate
from router.request_line import RequestLine
from router.sent import Sent
from router.tries import Tries
from router.waiting import Waiting, WaitingRoom

logger = logging.getLogger(__name__)

_MAX_ERROR = 300  # letters of an error in a record
_TOKEN_BYTES = 48  # that a token of a request holds here: an integer, a place for it, its hash
REQUEST_ID_KEY = "x-request-id"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedRequest:
    """A request ready to be placed: ids, hashes, every default resolved, the seed drawn."""

    compute: ComputeRequest
    prompt: bytes  # of its `DecodeRequest`
    hashes: tuple[GrainHash, ...]
    model: str
    cache_scope: str
    received_at: float  # time.monotonic()
    bypasses_cache: bool = False
    hints: RoutingHints = NO_HINTS

    @property
    def request_id(self) -> str:
        return self.compute.request_id

    @property
    def ask(self) -> Ask:
        params = self.compute.params
        return Ask(
            request_id=self.request_id,
            hashes=() if self.bypasses_cache else self.hashes,
            num_prompt_tokens=len(self.compute.prompt_ids),
            max_tokens=params.max_tokens,
            arrived_at=self.received_at,
            num_choices=params.num_choices,
            tenant=DEFAULT_TENANT,
            hints=self.hints,
        )


@dataclass(slots=True, eq=False)
class RelayCounters:
    """Since the start."""

    num_messages: int = 0
    num_tokens: int = 0


@dataclass(slots=True, eq=False)
class Relay:
    placer: Placer
    links: Links
    waiting: WaitingRoom
    clock: Callable[[], float] = time.monotonic
    unread_s: float = 60.0  # so long a client may leave a message unread
    counters: RelayCounters = field(default_factory=RelayCounters)

    async def serve(self, routed: RoutedRequest, call: Call, line: RequestLine) -> None:
        """Streams the answer into `call`, and fills the log's line. If a worker fails another goes
        on after what was sent: draws are keyed by position, so the rest is the rest that would
        have come."""
        sent, fate, said = Sent(), Fate.FINISHED, ""
        line.sent = sent
        reader = Reader(call, self.unread_s)
        try:
            async with reader:
                await self._serve_moving(routed, call, reader, sent, line)
        except BaseException as error:
            fate, said = _fate(error, call), str(error)[:_MAX_ERROR]
            if not reader.has_gone:
                raise
            fate = Fate.CANCELLED
            raise _unread(self.unread_s, sent) from error
        finally:
            num_tokens, now = call.tokens_emitted, self.clock()
            line.fate = fate
            line.record = self.placer.end(
                routed.request_id, fate, now, num_tokens=num_tokens, error=said
            )

    async def _serve_moving(
        self, routed: RoutedRequest, call: Call, reader: Reader, sent: Sent, line: RequestLine
    ) -> None:
        tries = Tries(self.placer.pool)
        while True:
            decision = await self._place(routed, call, sent, tries)
            line.placement, line.num_tries = decision.placement, line.num_tries + 1
            decode = decision.placement.decode
            worker = self.placer.pool.address(decode)
            assert worker is not None, "it has just been chosen"
            try:
                await self._serve_by(decision, routed, call, reader, sent, tries)
                return
            except (WorkerLost, ResourceError) as error:
                if sent.is_finished:
                    return  # the client has all of it
                failure = _interrupted(error, decode, sent) if sent.num_messages else error
            if not isinstance(failure, ResourceError):
                self.placer.pool.fail(decode, self.clock())
            logger.warning("%s: not served by %s: %s", routed.request_id, decode, failure)
            tries.failed(worker, failure)

    async def _place(self, routed: RoutedRequest, call: Call, sent: Sent, tries: Tries) -> Decision:
        """Waits for a worker that is expected back, where no other is left or others wait, too.
        Raises NoWorker, or what the last worker tried said, when nobody is."""
        call.phase = "decode" if sent.num_messages else "prefill"
        if self.waiting.is_empty:
            decision = self._place_now(routed, tries)
            if decision is not None:
                return decision
        waiting = self._waiting(routed, sent, tries)
        while True:
            try:
                await self.waiting.turn(waiting)
            except NoWorker as error:
                raise tries.failure or error from None
            decision = self._place_now(routed, tries, has_waited=True)
            if decision is not None:
                return decision

    def _place_now(
        self, routed: RoutedRequest, tries: Tries, *, has_waited: bool = False
    ) -> Decision | None:
        is_again = tries.failure is not None
        return self.placer.place(
            routed.ask, self.clock(), tries.excluded, is_again=is_again, has_waited=has_waited
        )

    def _waiting(self, routed: RoutedRequest, sent: Sent, tries: Tries) -> Waiting:
        """Raises why it cannot wait for a worker."""
        now, pool, failure = self.clock(), self.placer.pool, tries.failure
        start_s = pool.cold_start.wait_s(now)
        # The last one goes: another is started for who waits.
        is_gone = start_s > 0.0 and isinstance(failure, Draining)
        is_refused = isinstance(failure, ResourceError) and not is_gone
        is_anyone_expected = pool.expects(Role.DECODE, tries.excluded, now)
        if is_refused or not (is_anyone_expected or pool.snapshot(now).decode):
            raise failure or _no_worker(pool.refusals(now))
        service = self.placer.taken_on(routed.ask, now, is_again=failure is not None)
        compute = routed.compute
        num_bytes = _TOKEN_BYTES * (len(compute.prompt_ids) + sent.num_tokens)
        if failure is None:
            self.waiting.check_room(num_bytes)
        return Waiting(
            due_at=routed.received_at + service.ttft_s,
            since=now,
            until=now + max(min(service.patience_s, pool.absences.return_s), start_s),
            num_bytes=num_bytes,
            num_choices=compute.params.num_choices,
            tries=tries,
        )

    async def _serve_by(
        self,
        decision: Decision,
        routed: RoutedRequest,
        call: Call,
        reader: Reader,
        sent: Sent,
        tries: Tries,
    ) -> None:
        """One try. Its booking lasts as long."""
        num_before = sent.num_messages, sent.num_tokens
        request_id, decode = routed.request_id, decision.placement.decode

        async def pass_on(data: bytes) -> None:
            if sent.num_messages == num_before[0]:
                data = await self._begin(data, decision, routed, call, sent)
            else:
                sent.add(data)
            await reader.send(data)

        try:
            request = self._decode_request(decision, routed, sent)
            await self.links.get(decode).generate(request, call.remaining_s, pass_on)
        except DeadlineExceeded as error:
            raise _deadline(error, call, sent) from error
        except WorkerLost:
            has_begun, pool = sent.num_messages > num_before[0], self.placer.pool
            had_it = has_begun or pool.is_reported(request_id, decode)
            if had_it and not pool.is_leaving(decode):
                tries.died(request_id, decode, sent.num_tokens)
            raise
        finally:
            call.tokens_emitted = sent.num_tokens
            if sent.is_finished:
                self.placer.finished(request_id, sent.num_tokens, self.clock())
            self.placer.release(request_id)
            self.waiting.changed()
            self.counters.num_messages += sent.num_messages - num_before[0]
            self.counters.num_tokens += sent.num_tokens - num_before[1]
        if not sent.is_finished:
            raise WorkerLost(f"Worker '{decode}' ended the answer too early.")

    async def _begin(
        self, data: bytes, decision: Decision, routed: RoutedRequest, call: Call, sent: Sent
    ) -> bytes:
        """A worker's first message: it computes no prompt any more."""
        request_id, is_first = routed.request_id, not sent.num_messages
        try:
            data = sent.add_first(data)
        except DecodeError as error:
            decode = decision.placement.decode
            raise WorkerLost(f"Worker '{decode}' sent bytes that are no answer.") from error
        if not is_first:
            self.placer.continued(request_id, self.clock())
        else:
            self.placer.first_token(request_id, decision, sent.num_cached_tokens, self.clock())
            call.phase = "decode"
            await _echo(routed, call)
        return data

    def _decode_request(self, decision: Decision, routed: RoutedRequest, sent: Sent) -> bytes:
        placement, compute = decision.placement, routed.compute
        if sent.num_tokens:
            emitted = sent.emitted(compute.params.num_choices)
            compute = replace(compute, emitted=emitted)
        compute = replace(compute, due_s=decision.due_s)
        address = self.placer.pool.address
        request = decode_request_to_pb(
            compute,
            model=routed.model,
            tenant=DEFAULT_TENANT,
            cache_scope=routed.cache_scope,
            prefill=address(placement.prefill) if placement.prefill else None,
            source=address(placement.source) if placement.source else None,
            num_source_tokens=placement.num_source_tokens,
            router_s=self.clock() - routed.received_at,
        )
        return routed.prompt + request.SerializeToString()


async def _echo(routed: RoutedRequest, call: Call) -> None:
    """To who sent its id as metadata; all others read it in `accepted`, for one write less."""
    if call.metadata(REQUEST_ID_KEY):
        await call.send_metadata((REQUEST_ID_KEY, routed.request_id))


def _fate(error: BaseException, call: Call) -> Fate:
    """Whether it is anybody's fault but the caller's, who may be gone or have asked wrongly."""
    if isinstance(error, asyncio.CancelledError):
        left_s = call.remaining_s
        is_late = left_s is not None and left_s < DEADLINE_MARGIN_S
        return Fate.FAILED if is_late else Fate.CANCELLED
    is_callers = isinstance(error, CallerError) or type(error) is PeerError
    return Fate.CANCELLED if is_callers else Fate.FAILED


def _interrupted(error: PenstockError, decode: WorkerId, sent: Sent) -> StreamInterrupted:
    return StreamInterrupted(
        f"Worker '{decode}' failed after {sent.num_tokens} tokens were sent: {error.message}",
        tokens_emitted=sent.num_tokens,
    )


def _unread(limit_s: float, sent: Sent) -> StreamInterrupted:
    return StreamInterrupted(
        f"Nobody read this answer for {limit_s:g} s, and {sent.num_tokens} tokens were sent: read"
        " each message when it comes, or ask for fewer tokens.",
        tokens_emitted=sent.num_tokens,
    )


def _deadline(error: DeadlineExceeded, call: Call, sent: Sent) -> DeadlineExceeded:
    """The worker knows the phase, unless it was our own timer that ended the call."""
    phase = error.metadata.get("phase", "call")
    return DeadlineExceeded(
        call.phase if phase == "call" else phase, tokens_emitted=sent.num_tokens
    )


def _no_worker(refusals: list[Refusal]) -> NoWorker:
    reasons = [f"'{r.worker}': {r.reason}" for r in refusals if r.role is Role.DECODE]
    said = "; ".join(sorted(reasons)) or "none has registered"
    return NoWorker(f"No decode worker serves ({said}).")
