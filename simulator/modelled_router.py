"""The router in virtual time: the real index, pool and policy, and the calls in between, kept as
`router/relay.py` and `router/watcher.py` keep them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from cluster.events import CacheUpdate, EventCursor
from cluster.types import CacheChange, Incarnation, LoadReport, WorkerId
from router.index import PrefixIndex
from router.policy import Decision, PolicyState, place
from router.pool import Booking, Pool
from router.price import PlacementRequest
from simulator.answer import Answer
from simulator.decode_site import DecodeSite
from simulator.prefill_site import PrefillSite
from simulator.site import Site, World

MAX_TRIES = 3  # as the relay's
_NO_LIMIT = 1 << 30  # the router does not know how long an answer will be
AnySite = PrefillSite | DecodeSite


@dataclass(slots=True, eq=False)
class _Followed:
    """One life of a worker, as the router follows it."""

    site: AnySite
    cursor: EventCursor = field(default_factory=EventCursor)
    is_asking: bool = False  # for a snapshot


class ModelledRouter:
    def __init__(self, world: World, sites: Mapping[WorkerId, AnySite]) -> None:
        """`sites`: who answers at a worker's address now."""
        self.pool = Pool()
        self.index = PrefixIndex(world.setting.index_bytes)
        self.num_open = 0
        self._world = world
        self._sites = sites
        self._state = PolicyState()
        self._calls: dict[Answer, Site] = {}
        self._followed: dict[Incarnation, _Followed] = {}

    # -- requests ----------------------------------------------------------------------------

    def arrive(self, answer: Answer) -> None:
        self.num_open += 1
        self._try(answer)

    def first_token(self, answer: Answer, site: Site, num_cached: int) -> None:
        if self._calls.get(answer) is not site:
            return
        self.pool.first_token(answer.request_id)
        if not answer.first_s:
            answer.first_s = self._now_s
            answer.num_cached = num_cached
            self._world.ledger.first_token(answer)

    def finished(self, answer: Answer, site: Site) -> None:
        if self._end_call(answer, site):
            self._world.ledger.finished(answer, self._now_s)
            self._end(answer)

    def refused(self, answer: Answer, site: Site, *, for_good: bool) -> None:
        if not self._end_call(answer, site):
            return
        if for_good:
            self._fail(answer)
        else:
            self._try_another(answer, site.worker)

    def calls_of(self, site: Site) -> list[Answer]:
        return [answer for answer, other in self._calls.items() if other is site]

    def _try(self, answer: Answer) -> None:
        decision = self._place(answer)
        if decision is None:
            self._fail(answer)
            return
        if not answer.num_tokens:
            answer.num_predicted = decision.num_cached_tokens
        placement = decision.placement
        decode = self._sites[placement.decode]
        assert isinstance(decode, DecodeSite)
        prefill = self._sites[placement.prefill] if placement.prefill else None
        assert not isinstance(prefill, DecodeSite)
        self.pool.book(_booking(decision, answer))
        self._calls[answer] = decode.site
        self._world.ledger.num_local += prefill is None
        if decode.site.is_dead:  # nobody listens there
            lost = partial(self.lost, answer, decode.site)
            self._world.agenda.after(self._world.setting.message_s, lost)
        else:
            decode.site.post_from_router(partial(decode.generate, answer, prefill))

    def _place(self, answer: Answer) -> Decision | None:
        traced, grain = answer.traced, self._world.grain
        whole = traced.grains[: traced.num_prompt_tokens // grain]
        matched = self.index.match(whole)
        request = PlacementRequest(
            num_prompt_tokens=traced.num_prompt_tokens,
            max_tokens=_NO_LIMIT,
            num_cached_tokens={worker: num * grain for worker, num in matched.items()},
            excluded=answer.excluded,
        )
        snapshot = self.pool.snapshot(self._now_s)
        decision, self._state = place(request, snapshot, self._state, self._world.setting.policy)
        return decision

    def lost(self, answer: Answer, site: Site) -> None:
        """Its worker does not answer any more."""
        if self._end_call(answer, site):
            self.pool.fail(site.worker, self._now_s)
            self._try_another(answer, site.worker)

    def _try_another(self, answer: Answer, worker: WorkerId) -> None:
        answer.excluded |= {worker}
        if len(answer.excluded) >= MAX_TRIES:
            self._fail(answer)
            return
        self._world.ledger.num_moved += 1
        self._try(answer)

    def _end_call(self, answer: Answer, site: Site) -> bool:
        """False: it is no call of ours any more."""
        if self._calls.get(answer) is not site:
            return False
        del self._calls[answer]
        self.pool.release(answer.request_id)
        return True

    def _fail(self, answer: Answer) -> None:
        self._world.ledger.num_failed += 1
        self._end(answer)

    def _end(self, answer: Answer) -> None:
        answer.is_over = True
        self.num_open -= 1

    # -- workers -----------------------------------------------------------------------------

    def join(self, site: AnySite) -> None:
        """A life of a worker registers; its cache is asked for."""
        worker = site.site.member.worker
        self.pool.join(site.site.member)
        self._followed[worker.incarnation] = followed = _Followed(site)
        self._take_snapshot(followed)

    def leave(self, site: AnySite) -> None:
        """Nothing is known of it any more."""
        worker = site.site.member.worker
        self._followed.pop(worker.incarnation, None)
        self.pool.leave(worker.worker_id, worker.incarnation)
        self.index.purge(worker.worker_id, worker.incarnation)

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

    def _ask(self, followed: _Followed) -> None:
        followed.is_asking = True
        self._world.agenda.after(
            self._world.setting.event_s, partial(self._take_snapshot, followed)
        )

    def _take_snapshot(self, followed: _Followed) -> None:
        site = followed.site.site
        if site.is_dead:
            return
        number, grains = site.feed.snapshot()
        life = site.member.worker.incarnation
        update = followed.cursor.snapshot_part(life, number, grains, is_first=True, is_last=True)
        assert update is not None
        followed.is_asking = False
        self._apply(followed, update)

    def _apply(self, followed: _Followed, update: CacheUpdate) -> None:
        worker = followed.site.site.member.worker
        if update.is_reset:
            self.index.replace(worker.worker_id, worker.incarnation, ())
        for change in update.changes:
            self.index.apply(worker.worker_id, worker.incarnation, change)

    @property
    def _now_s(self) -> float:
        return self._world.agenda.now_s

    def check(self) -> None:
        self.pool.check()
        self.index.check()


def _booking(decision: Decision, answer: Answer) -> Booking:
    return Booking(
        request_id=answer.request_id,
        decode=decision.placement.decode,
        prefill=decision.placement.prefill,
        num_prefill_tokens=decision.num_prefill_tokens,
        num_context_tokens=answer.traced.num_prompt_tokens,
    )
