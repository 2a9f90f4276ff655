"""A modelled prefill worker: its hand-overs, driven by the scheduler that real ones use."""

from functools import partial
from typing import Protocol

from cluster.types import LoadReport
from engine.batcher import Drawn
from kv_transfer.loan import Word
from prefill_worker.scheduler import PrefillScheduler
from simulator.agenda import Action
from simulator.answer import ModelledAnswer
from simulator.loan import ModelledLoan
from simulator.modelled_fetch import ModelledFetches, Prefix
from simulator.site import Site


class ModelledReceiver(Protocol):
    """The decode worker's end of a hand-over. Each call is a message on its way."""

    @property
    def site(self) -> Site: ...

    def claim(self, hand_over: "ModelledHandOver") -> None: ...

    def first_token(self, hand_over: "ModelledHandOver", num_cached: int) -> None: ...

    def written(self, hand_over: "ModelledHandOver") -> None: ...

    def lost(self, hand_over: "ModelledHandOver") -> None: ...


class ModelledHandOver:
    """One prompt computed here for a decode worker."""

    __slots__ = (
        "answer",
        "computed_s",
        "granted_s",
        "has_given_up",
        "is_over",
        "loan",
        "num_bytes",
        "prefill",
        "receiver",
        "scheduled_s",
        "sequence",
    )

    def __init__(
        self,
        prefill: "PrefillSite",
        receiver: ModelledReceiver,
        answer: ModelledAnswer,
        due_at: float,
    ) -> None:
        self.prefill = prefill
        self.receiver = receiver
        self.answer = answer
        self.loan = ModelledLoan(prefill.site, is_prompt=True)
        self.sequence = answer.sequence(prefill.site.world.grain, self, due_at)
        self.scheduled_s = 0.0
        self.computed_s: float | None = None
        self.granted_s: float | None = None
        self.num_bytes = 0
        self.has_given_up = False
        self.is_over = False

    # -- told by the scheduler ---------------------------------------------------------------

    def scheduled(self) -> None:
        self.scheduled_s = self._now_s
        self.loan.said(Word.FOUND)
        claim = partial(self.receiver.claim, self)
        self.receiver.site.post_quietly(self._message_s, claim)

    def computed(self, layer: int, num_tokens: int) -> None:
        """The link's model says when layers land."""

    def chunk_done(self, seconds: float) -> None:
        pass

    def first_tokens(self, drawn: list[Drawn]) -> None:
        self.computed_s = self._now_s
        self.loan.said(Word.TOKENS)
        first_token = partial(self.receiver.first_token, self, self.sequence.num_cached)
        self.receiver.site.post_silently(self._message_s, first_token)
        self._transfer()

    def failed(self, error: Exception) -> None:
        raise AssertionError("a modelled engine does not fail") from error

    def give_up(self) -> bool:
        if self.granted_s is not None or self.has_given_up:
            return False
        self.has_given_up = True
        self.refuse()
        self.prefill.site.post(0.0, self.cancel)
        return True

    # -- told by the decode worker -----------------------------------------------------------

    def granted(self, num_tokens: int) -> None:
        """It has blocks for these tokens, which it does not hold."""
        if self.is_over or not self.loan.grant_arrived():
            return
        self.granted_s = self._now_s
        self.num_bytes = num_tokens * self.prefill.token_bytes
        self._transfer()

    def cancel(self) -> None:
        if not self.is_over:
            self.is_over = True
            self.prefill.scheduler.drop(self.sequence)
            self.sequence.owner = None  # no circle: it is gone at once

    def refuse(self) -> None:
        """Somebody else has to compute it."""
        self._tell(partial(self.receiver.lost, self))

    # -- inside ------------------------------------------------------------------------------

    @property
    def _now_s(self) -> float:
        return self.prefill.site.world.agenda.now_s

    @property
    def _message_s(self) -> float:
        return self.prefill.site.world.setting.message_s

    def _tell(self, action: Action) -> None:
        self.receiver.site.post(self._message_s, action)

    def _transfer(self) -> None:
        """Once the prompt is computed and the blocks are there: when will the last layer land?"""
        if self.computed_s is None or self.granted_s is None:
            return
        setting = self.prefill.site.world.setting
        num_layers = setting.model.num_layers
        begin_s = max(self.scheduled_s, self.granted_s)
        overlap_s = max(0.0, self.computed_s - begin_s) * (num_layers - 1) / num_layers
        seconds = setting.link.visible_s(self.num_bytes, num_layers, overlap_s)
        self.prefill.site.post(seconds, self._landed)

    def _landed(self) -> None:
        if not self.is_over:
            self.loan.said(Word.WRITTEN)
            self.prefill.site.world.ledger.moved_bytes += self.num_bytes
            self.cancel()
            self._tell(partial(self.receiver.written, self))


class PrefillSite:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.token_bytes = site.world.setting.model.token_bytes
        self.scheduler = PrefillScheduler(site.batcher, site.cost, site.stepper.wake)
        self.fetches = ModelledFetches(site, self.scheduler)
        site.drive(self.scheduler)

    def receive(self, hand_over: ModelledHandOver, prefix: Prefix | None) -> None:
        """`Prefill.Prefill`. `prefix` is fetched first."""
        if hand_over.is_over:
            return
        if self.scheduler.num_waiting >= self.site.make.max_waiting:
            hand_over.is_over = True
            hand_over.refuse()
            return
        submit = partial(self._submit, hand_over)
        self.fetches.fetch(hand_over.sequence, prefix, lambda: not hand_over.is_over, submit)

    def _submit(self, hand_over: ModelledHandOver) -> None:
        self.scheduler.submit(hand_over.sequence)
        self.site.feed.admitted(hand_over.answer.request_id)

    def load(self) -> LoadReport:
        self.site.stepper.sync()
        self.site.feed.flush()
        return self.site.feed.report(self.scheduler.load())

    def check(self) -> None:
        self.scheduler.check()
