"""A modelled decode worker: the answers that it owns, driven by the scheduler that real ones
use. A hand-over that fails is computed here, as the real ones are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from cluster.types import BlockId, LoadReport
from decode_worker.scheduler import DecodeScheduler
from engine.batcher import Drawn
from engine.sequence import Sequence
from kv_transfer.loan import Word
from simulator.answer import ModelledAnswer
from simulator.modelled_fetch import ModelledFetches, Prefix
from simulator.prefill_site import ModelledHandOver, PrefillSite
from simulator.site import Site


class Upstream(Protocol):
    """The router's end of a call. Each is a message that has arrived."""

    def first_token(self, answer: ModelledAnswer, site: Site, num_cached: int) -> None: ...

    def finished(self, answer: ModelledAnswer, site: Site) -> None: ...

    def refused(self, answer: ModelledAnswer, site: Site, *, for_good: bool) -> None:
        """It takes no more, or, `for_good`, the request can never fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledCall:
    """Holds what the router decided, with an answer on its way to a decode worker."""

    prefill: PrefillSite | None
    prefix: Prefix | None
    due_s: float


class ModelledTry:
    """One try of an answer, on one decode worker."""

    __slots__ = (
        "answer",
        "decode",
        "due_at",
        "hand_over",
        "has_first",
        "is_over",
        "sequence",
        "timer",
    )

    def __init__(self, decode: "DecodeSite", answer: ModelledAnswer, due_at: float) -> None:
        self.decode = decode
        self.answer = answer
        self.due_at = due_at
        self.sequence = answer.sequence(decode.site.world.grain, self, due_at)
        self.hand_over: ModelledHandOver | None = None
        self.timer: int | None = None  # of a claim that waits
        self.has_first = False
        self.is_over = False

    @property
    def site(self) -> Site:
        return self.decode.site

    # -- told by the scheduler ---------------------------------------------------------------

    def scheduled(self) -> None:
        pass

    def drawn(self, drawn: Drawn, seconds: float) -> bool:
        # Without a token it was but a chunk of the prompt.
        return drawn.token is None or self._take_token(drawn.sequence.num_cached)

    def failed(self, error: Exception) -> None:
        raise AssertionError("a modelled engine does not fail") from error

    def granted(self) -> None:
        """Its claim: the blocks are in its table."""
        self._stop_timer()
        if (hand_over := self.hand_over) is not None:
            num_missing = self.sequence.num_tokens - self.sequence.num_computed
            hand_over.loan.granted()
            self._tell(hand_over, partial(hand_over.granted, num_missing))

    # -- told by the prefill worker ----------------------------------------------------------

    def claim(self, hand_over: ModelledHandOver) -> None:
        """The prompt is being computed: asks for blocks, now and not before."""
        if hand_over is not self.hand_over:
            return
        hand_over.loan.arrived(Word.FOUND)
        grant_s = self.site.world.setting.grant_s
        late = partial(self.site.post, 0.0, partial(self._judge, hand_over))
        self.timer = self.site.world.agenda.after(grant_s, late)
        self.decode.scheduler.claim(self.sequence, self.granted)

    def first_token(self, hand_over: ModelledHandOver, num_cached: int) -> None:
        """Takes it to the client at once."""
        if hand_over is not self.hand_over:
            return
        hand_over.loan.arrived(Word.TOKENS)
        if not self._take_token(num_cached):
            self.site.stepper.touch()
            self.leave(hand_over)

    def written(self, hand_over: ModelledHandOver) -> None:
        if hand_over is not self.hand_over:
            return
        hand_over.loan.arrived(Word.WRITTEN)
        self.hand_over = None
        self._begin()
        self.decode.scheduler.join(self.sequence, [])

    def lost(self, hand_over: ModelledHandOver, *, may_still_write: bool = False) -> None:
        """Computes the prompt here, and goes on after what has been sent."""
        if hand_over is not self.hand_over:
            return
        self.leave(hand_over, may_still_write=may_still_write)
        self.site.world.ledger.num_recomputes += 1
        if self.has_first:
            self._begin()
        self.decode.scheduler.submit(self.sequence)

    # -- ends --------------------------------------------------------------------------------

    def leave(self, hand_over: ModelledHandOver, *, may_still_write: bool = False) -> None:
        """Ends the hand-over. Blocks that its writer may still write are kept out of use."""
        self.hand_over = None
        self._stop_timer()
        unwritten = self.decode.scheduler.forgo(self.sequence)
        if may_still_write:
            self.decode.quarantine(hand_over.prefill, unwritten)
        else:
            self.decode.scheduler.release(unwritten)
        self._tell(hand_over, hand_over.cancel)

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.is_over = True
        if self.hand_over is not None:
            self.leave(self.hand_over)
            return
        self.site.stepper.forget(self.sequence)
        self.decode.scheduler.drop(self.sequence)

    # -- inside ------------------------------------------------------------------------------

    def _judge(self, hand_over: ModelledHandOver) -> None:
        """No block has come free for as long as may be."""
        if hand_over is self.hand_over and hand_over.loan.has_failed():
            self.lost(hand_over)

    def _begin(self) -> None:
        self.sequence.has_begun = True
        self.sequence.output_ids.append(0)

    def _take_token(self, num_cached: int) -> bool:
        answer, world = self.answer, self.site.world
        if answer.num_tokens:
            world.ledger.gap(world.agenda.now_s - answer.last_s)
        answer.num_tokens += 1
        answer.last_s = world.agenda.now_s
        if not self.has_first:
            self.has_first = True
            upstream = self.decode.upstream
            self.site.tell_router(partial(upstream.first_token, answer, self.site, num_cached))
        if answer.num_left == 0:
            self.decode.end(self)
            return False
        return True

    def _tell(self, hand_over: ModelledHandOver, action: Callable[[], None]) -> None:
        hand_over.prefill.site.post(self.site.world.setting.message_s, action)

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.site.world.agenda.cancel(self.timer)
            self.timer = None


class DecodeSite:
    def __init__(self, site: Site, upstream: Upstream) -> None:
        self.site = site
        self.upstream = upstream
        self.attempts: dict[ModelledAnswer, ModelledTry] = {}
        self.scheduler = DecodeScheduler(site.batcher, site.cost, site.stepper.wake)
        self.fetches = ModelledFetches(site, self.scheduler)
        self._quarantined: list[tuple[PrefillSite, list[BlockId]]] = []
        site.drive(self.scheduler, self)

    def generate(self, answer: ModelledAnswer, call: ModelledCall) -> None:
        """`Decode.Generate`."""
        make = self.site.make
        traced = answer.traced
        num_tokens = traced.num_prompt_tokens + traced.num_output_tokens
        for_good = num_tokens > make.num_blocks * make.block_size
        if for_good or self.scheduler.num_waiting >= make.max_waiting:
            refused = partial(self.upstream.refused, answer, self.site, for_good=for_good)
            self.site.tell_router(refused)
            return
        due_at = self.site.world.agenda.now_s + call.due_s
        attempt = self.attempts[answer] = ModelledTry(self, answer, due_at)
        if call.prefill is None:
            self._prefill_here(attempt, call.prefix)
        else:
            self.site.feed.admitted(answer.request_id)
            if call.prefill.site.is_dead:
                self.site.stepper.touch()
                self.scheduler.submit(attempt.sequence)
            else:
                self._hand_over(attempt, call.prefill, call.prefix)

    def _prefill_here(self, attempt: ModelledTry, prefix: Prefix | None) -> None:
        submit = partial(self._submit, attempt)
        self.fetches.fetch(attempt.sequence, prefix, lambda: not attempt.is_over, submit)

    def _submit(self, attempt: ModelledTry) -> None:
        self.site.stepper.touch()
        self.scheduler.submit(attempt.sequence)
        self.site.feed.admitted(attempt.answer.request_id)

    def _hand_over(self, attempt: ModelledTry, prefill: PrefillSite, prefix: Prefix | None) -> None:
        setting = self.site.world.setting
        hand_over = ModelledHandOver(prefill, attempt, attempt.answer, attempt.due_at)
        attempt.hand_over = hand_over
        self.scheduler.expect(attempt.sequence)
        prefill.site.post(setting.message_s, partial(prefill.receive, hand_over, prefix))
        if prefill.site.is_frozen:
            self.site.post(setting.lease_s, partial(self._check_sign, attempt, hand_over))

    def _check_sign(self, attempt: ModelledTry, hand_over: ModelledHandOver) -> None:
        if hand_over is attempt.hand_over and hand_over.loan.has_failed():
            attempt.lost(hand_over, may_still_write=True)

    # -- told by the step loop ---------------------------------------------------------------

    def stepped(self, sequences: list[Sequence], ends: list[float], before_s: float | None) -> None:
        ledger, num, last_s = self.site.world.ledger, len(sequences), ends[-1]
        if before_s is not None:
            ledger.gap(ends[0] - before_s, num)
        for sequence in sequences:
            answer: ModelledAnswer = sequence.owner.answer
            if before_s is None:
                ledger.gap(ends[0] - answer.last_s)
            answer.num_tokens += len(ends)
            answer.last_s = last_s
        ledger.gaps(ends, num)

    def finished(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self.end(sequence.owner)

    def end(self, attempt: ModelledTry) -> None:
        """The answer has all its tokens."""
        attempt.is_over = True
        attempt.sequence.owner = None  # no circle: it is gone at once
        del self.attempts[attempt.answer]
        self.site.tell_router(partial(self.upstream.finished, attempt.answer, self.site))

    # -- faults ------------------------------------------------------------------------------

    def writer_died(self, prefill: PrefillSite) -> None:
        for attempt in list(self.attempts.values()):
            hand_over = attempt.hand_over
            if hand_over is not None and hand_over.prefill is prefill:
                attempt.lost(hand_over)
        self.writer_answered(prefill)

    def writer_silent(self, prefill: PrefillSite) -> None:
        for attempt in list(self.attempts.values()):
            hand_over = attempt.hand_over
            if hand_over is not None and hand_over.prefill is prefill:
                attempt.lost(hand_over, may_still_write=True)

    def quarantine(self, prefill: PrefillSite, blocks: list[BlockId]) -> None:
        """Quarantines them until `prefill` says, by answer or death, that it will not write."""
        self._quarantined.append((prefill, blocks))

    def writer_answered(self, prefill: PrefillSite) -> None:
        ours = [blocks for writer, blocks in self._quarantined if writer is prefill]
        self._quarantined = [each for each in self._quarantined if each[0] is not prefill]
        for blocks in ours:
            self.scheduler.release(blocks)

    def drop(self, answer: ModelledAnswer) -> None:
        """The router's call has ended."""
        attempt = self.attempts.pop(answer, None)
        if attempt is not None:
            attempt.cancel()

    def load(self) -> LoadReport:
        self.site.stepper.sync()
        self.site.feed.flush()
        return self.site.feed.report(self.scheduler.load())

    def check(self) -> None:
        self.scheduler.check()
