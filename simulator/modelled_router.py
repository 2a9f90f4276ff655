"""The router in virtual time: the real index, pool and policy, and the calls in between, kept as
`router/relay.py` and `router/watcher.py` keep them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from cluster.errors import Overloaded
from cluster.events import CacheUpdate, EventCursor
from cluster.types import CacheChange, Incarnation, LoadReport, WorkerId
from router.decision import Decision
from router.flight import Ask, Begun, Ended, Event, Left
from router.index import PrefixIndex
from router.placer import Placer
from router.pool import Pool
from router.records import Fate
from router.rollout.generations import Generations
from router.tries import MAX_TRIES
from simulator.agenda import Door
from simulator.answer import ModelledAnswer
from simulator.decode_site import DecodeSite, ModelledCall
from simulator.modelled_fetch import Prefix
from simulator.prefill_site import PrefillSite
from simulator.site import Site, World

AnySite = PrefillSite | DecodeSite


@dataclass(slots=True, eq=False)
class _FollowedLife:
    """One life of a worker, as the router follows it."""

    site: AnySite
    cursor: EventCursor = field(default_factory=EventCursor)
    is_asking: bool = False  # for a snapshot


class ModelledRouter:
    def __init__(self, world: World, sites: Mapping[WorkerId, AnySite]) -> None:
        """`sites`: who answers at a worker's address now."""
        setting = world.setting
        self.pool = Pool()
        self.index = PrefixIndex(setting.index_bytes)
        self.placer = Placer(
            self.pool, self.index, world.grain, Generations(world.policy, world.seed)
        )
        self.num_open = 0
        self._door = Door(world.agenda, setting.door_s)
        self._world = world
        self._sites = sites
        self._calls: dict[ModelledAnswer, Site] = {}
        self._followed: dict[Incarnation, _FollowedLife] = {}

    # -- requests ----------------------------------------------------------------------------

    def arrive(self, answer: ModelledAnswer) -> None:
        self.num_open += 1
        enter = partial(self._door.enter, partial(self._try, answer))
        if client_s := self._world.setting.client_s:
            self._world.agenda.after(client_s, enter)
        else:
            enter()

    def first_token(self, answer: ModelledAnswer, site: Site, num_cached: int) -> None:
        if self._calls.get(answer) is not site:
            return
        self._tell(answer, Begun(num_cached))
        if not answer.first_s:
            answer.first_s = self._now_s
            answer.num_cached = num_cached
            self._world.ledger.first_token(answer)

    def finished(self, answer: ModelledAnswer, site: Site) -> None:
        if self._end_call(answer, site):
            self._world.ledger.finished(answer, self._now_s)
            self._end(answer, Fate.FINISHED, answer.traced.num_output_tokens)

    def refused(self, answer: ModelledAnswer, site: Site, *, for_good: bool) -> None:
        if not self._end_call(answer, site):
            return
        if for_good:
            self._fail(answer)
        else:
            self._try_another(answer, site.worker)

    def calls_of(self, site: Site) -> list[ModelledAnswer]:
        return [answer for answer, other in self._calls.items() if other is site]

    def _try(self, answer: ModelledAnswer) -> None:
        try:
            decision = self.placer.place(self._asked(answer), self._now_s, answer.excluded)
        except Overloaded:
            self._world.ledger.num_rejected += 1
            self._end(answer, Fate.FAILED)
            return
        if decision is None:
            self._fail(answer)
            return
        if not answer.num_tokens:
            answer.num_predicted = decision.num_cached_tokens
        decode = self._sites[decision.placement.decode]
        assert isinstance(decode, DecodeSite)
        call = self._call(decision)
        self._calls[answer] = decode.site
        self._world.ledger.num_local += call.prefill is None
        if decode.site.is_dead:  # nobody listens there
            lost = partial(self.lost, answer, decode.site)
            self._world.agenda.after(self._world.setting.message_s, lost)
        else:
            decode.site.post_from_router(partial(decode.generate, answer, call))

    def _call(self, decision: Decision) -> ModelledCall:
        placement = decision.placement
        prefill = self._sites[placement.prefill] if placement.prefill else None
        assert not isinstance(prefill, DecodeSite)
        prefix = None
        if placement.source and (source := self._sites.get(placement.source)):  # it may have left
            prefix = Prefix(source=source.site, num_tokens=placement.num_source_tokens)
        return ModelledCall(prefill=prefill, prefix=prefix, due_s=decision.due_s)

    def _asked(self, answer: ModelledAnswer) -> Ask:
        traced, grain = answer.traced, self._world.grain
        return Ask(
            request_id=answer.request_id,
            hashes=traced.grains[: traced.num_prompt_tokens // grain],
            num_prompt_tokens=traced.num_prompt_tokens,
            max_tokens=traced.max_output_tokens,
            arrived_at=traced.arrival_s,
        )

    def lost(self, answer: ModelledAnswer, site: Site) -> None:
        """Its worker does not answer any more."""
        if self._end_call(answer, site):
            self.pool.fail(site.worker, self._now_s)
            self._try_another(answer, site.worker)

    def _try_another(self, answer: ModelledAnswer, worker: WorkerId) -> None:
        answer.excluded |= {worker}
        if len(answer.excluded) >= MAX_TRIES:
            self._fail(answer)
            return
        self._tell(answer, Left())
        self._world.ledger.num_moved += 1
        self._try(answer)

    def _end_call(self, answer: ModelledAnswer, site: Site) -> bool:
        """False: it is no call of ours any more."""
        if self._calls.get(answer) is not site:
            return False
        del self._calls[answer]
        return True

    def _fail(self, answer: ModelledAnswer) -> None:
        self._world.ledger.num_failed += 1
        self._end(answer, Fate.FAILED)

    def _end(self, answer: ModelledAnswer, fate: Fate, num_tokens: int = 0) -> None:
        self._tell(answer, Ended(fate, num_tokens))
        answer.is_over = True
        self.num_open -= 1

    def _tell(self, answer: ModelledAnswer, event: Event) -> None:
        self.placer.told(answer.request_id, event, self._now_s)

    # -- workers -----------------------------------------------------------------------------

    def join(self, site: AnySite) -> None:
        """A life of a worker registers; its cache is asked for."""
        worker = site.site.member.worker
        self.pool.join(site.site.member)
        self._followed[worker.incarnation] = followed = _FollowedLife(site)
        self._take_snapshot(followed)

    def leave(self, site: AnySite) -> None:
        """Nothing is known of it any more."""
        worker = site.site.member.worker
        self._followed.pop(worker.incarnation, None)
        self.placer.books.leave(worker.worker_id, worker.incarnation)

    def follows(self, site: AnySite) -> bool:
        return site.site.member.worker.incarnation in self._followed

    def report(self, site: Site, load: LoadReport) -> None:
        worker = site.member.worker
        self.pool.report(worker.worker_id, worker.incarnation, load, self._now_s)
        self.index.mark_fresh(worker.worker_id, self._now_s)

    def hear(self, site: Site, number: int, change: CacheChange) -> None:
        """A cache event. After a gap a snapshot is asked for, as a real watcher does."""
        followed = self._followed.get(site.member.worker.incarnation)
        if followed is None or followed.is_asking:
            return
        update = followed.cursor.events(number, (change,))
        if update is not None:
            self._apply(followed, update)
        else:
            self._ask(followed)

    def ask(self, site: AnySite) -> None:
        """Its stream broke and begins anew."""
        followed = self._followed[site.site.member.worker.incarnation]
        if not followed.is_asking:
            self._ask(followed)

    def _ask(self, followed: _FollowedLife) -> None:
        followed.is_asking = True
        self._world.agenda.after(
            self._world.setting.event_s, partial(self._take_snapshot, followed)
        )

    def _take_snapshot(self, followed: _FollowedLife) -> None:
        site = followed.site.site
        if site.is_dead:
            return
        number, grains = site.feed.snapshot()
        life = site.member.worker.incarnation
        update = followed.cursor.snapshot_part(life, number, grains, offset=0, is_last=True)
        assert update is not None
        followed.is_asking = False
        self._apply(followed, update)

    def _apply(self, followed: _FollowedLife, update: CacheUpdate) -> None:
        worker = followed.site.site.member.worker
        if update.is_reset:
            self.index.replace(worker.worker_id, worker.incarnation, ())
        for change in update.changes:
            self.index.apply(worker.worker_id, worker.incarnation, change)

    @property
    def _now_s(self) -> float:
        return self._world.agenda.now_s

    def check(self) -> None:
        self.placer.check()
