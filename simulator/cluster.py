"""All workers of a simulation and the router before them; what a fault does to whom."""

from collections import Counter
from dataclasses import replace
from functools import partial

from cluster.types import Role, WorkerId
from simulator.answer import ModelledAnswer
from simulator.decode_site import DecodeSite
from simulator.modelled_router import AnySite, ModelledRouter
from simulator.prefill_site import PrefillSite
from simulator.site import Site, World


class ModelledCluster:
    """Owns every life of every worker."""

    def __init__(self, world: World) -> None:
        self.sites: dict[WorkerId, AnySite] = {}
        self.router = ModelledRouter(world, self.sites)
        self.is_over = False
        self._world = world
        self._lives: Counter[WorkerId] = Counter()
        self._busy_s = dict.fromkeys(Role, 0.0)  # of lives that have ended
        self._num_preemptions = 0
        self._sent: dict[AnySite, dict[ModelledAnswer, int]] = {}  # when a worker was cut off
        self._ranks: dict[WorkerId, int] = {}  # of each worker that ever was
        self._leaving: set[AnySite] = set()
        for role, worker in world.setting.workers:
            self.start(role, worker)

    # -- what is counted ---------------------------------------------------------------------

    @property
    def busy_s(self) -> dict[Role, float]:
        busy_s = dict(self._busy_s)
        for site in self.sites.values():
            busy_s[site.site.member.role] += site.site.stepper.busy_s
        return busy_s

    @property
    def num_preemptions(self) -> int:
        lives = self.sites.values()
        return self._num_preemptions + sum(
            site.site.batcher.counters.num_preemptions for site in lives
        )

    def check(self) -> None:
        """Raises AssertionError unless every block and every booking is accounted for."""
        self.router.check()
        for site in self._alive():
            site.site.stepper.sync()
            site.check()

    def check_empty(self) -> None:
        """Nobody holds anything any more."""
        self.check()
        assert self.router.pool.num_in_flight == 0
        for site in self._alive():
            assert site.site.pool.num_held == 0, site.site.worker
            assert not isinstance(site, DecodeSite) or not site.attempts, site.site.worker

    # -- coming and going --------------------------------------------------------------------

    def start(self, role: Role, worker: WorkerId) -> None:
        """A life of it begins, with an empty cache."""
        world = self._world
        life = self._lives[worker]
        self._lives[worker] += 1
        rank = self._ranks.setdefault(worker, len(self._ranks))
        member = world.setting.member(role, worker, life, world.grain)
        site = Site(world, member, rank=rank, hear=self.router.hear)
        self.sites[worker] = made = (
            PrefillSite(site) if role is Role.PREFILL else DecodeSite(site, self.router)
        )
        self.router.join(made)
        self.router.report(site, made.load())
        # Each at its own moment, as processes that were started one after another.
        interval_s = world.setting.report_s
        num_workers = world.setting.num_workers
        first_s = interval_s * (1 + rank % num_workers) / num_workers
        world.agenda.after(first_s, partial(self._report_on, made))

    def drain(self, worker: WorkerId) -> None:
        """It gets no more, and ends what it has."""
        site = self.sites[worker]
        self._leaving.add(site)
        self._report(site)

    def is_idle(self, worker: WorkerId) -> bool:
        """Nothing runs or waits there, and nobody reads from it."""
        site = self.sites[worker]
        batcher, pool = site.site.batcher, site.site.pool
        if batcher.running or batcher.waiting or pool.num_held or site.fetches.is_any:
            return site.site.is_dead
        return not self.router.calls_of(site.site)

    def retire(self, worker: WorkerId) -> None:
        """It is gone, and nobody expects it back. What it still had goes on elsewhere."""
        site = self.sites[worker]
        self.crash(worker)
        self._leaving.discard(site)
        self.router.leave(site)
        del self.sites[worker]

    # -- faults ------------------------------------------------------------------------------

    def crash(self, worker: WorkerId) -> None:
        """Its process is gone: calls to it end, its peers hear of it."""
        site = self.sites[worker]
        if site.site.is_dead:
            return
        self._bury(site)
        message_s = self._world.setting.message_s
        self._world.agenda.after(message_s, partial(self._lose_calls, site))
        for peer in self._alive():
            peer.site.post(message_s, partial(peer.fetches.source_died, site.site))
        if isinstance(site, PrefillSite):
            for peer in self._decodes():
                peer.site.post(message_s, partial(peer.writer_died, site))
        else:
            for attempt in site.attempts.values():
                if (hand_over := attempt.hand_over) is not None:
                    hand_over.prefill.site.post(message_s, hand_over.cancel)

    def restart(self, worker: WorkerId) -> None:
        """A new life, with an empty cache, in place of one that has crashed."""
        site = self.sites[worker]
        if site.site.is_dead:
            self.router.leave(site)
            self.start(site.site.member.role, worker)

    def freeze(self, worker: WorkerId) -> None:
        """Its process stands still, its connections stay open."""
        site = self.sites[worker]
        if site.site.is_dead or site.site.is_frozen:
            return
        site.site.freeze()
        if isinstance(site, PrefillSite):
            for peer in self._decodes():
                silent = partial(self._hear_silence, peer, site, self._world.agenda.now_s)
                peer.site.post(self._world.setting.lease_s, silent)
        self._world.agenda.after(
            self._world.setting.lapse_s, partial(self._kill_frozen, site, self._world.agenda.now_s)
        )

    def thaw(self, worker: WorkerId) -> None:
        """Goes on where it stood still; if it was killed meanwhile, a new life begins."""
        site = self.sites[worker]
        if site.site.is_dead:
            self.restart(worker)
            return
        if not site.site.is_frozen:
            return
        site.site.thaw()
        if isinstance(site, PrefillSite):
            for peer in self._decodes():
                peer.site.post(self._world.setting.message_s, partial(peer.writer_answered, site))

    def cut(self, worker: WorkerId) -> None:
        """Router and worker do not reach each other; workers do."""
        site = self.sites[worker]
        if not (site.site.is_dead or site.site.is_cut):
            site.site.cut()
            self._sent[site] = {
                answer: answer.num_tokens for answer in self.router.calls_of(site.site)
            }
            self._world.agenda.after(
                self._world.setting.lapse_s, partial(self._give_up, site, self._world.agenda.now_s)
            )

    def heal(self, worker: WorkerId) -> None:
        site = self.sites[worker]
        if site.site.is_dead or not site.site.is_cut:
            return
        site.site.heal()
        self._sent.pop(site, None)
        if self.router.follows(site):
            self.router.ask(site)
        else:
            self.router.join(site)

    def lose_events(self, worker: WorkerId, *, loses: bool) -> None:
        self.sites[worker].site.feed.loses_events = loses

    def be_slower(self, worker: WorkerId, factor: float) -> None:
        self.sites[worker].site.be_slower(factor)

    # -- inside ------------------------------------------------------------------------------

    def _report_on(self, site: AnySite) -> None:
        if self.is_over or site.site.is_dead:
            return
        self._report(site)
        self._world.agenda.after(self._world.setting.report_s, partial(self._report_on, site))

    def _report(self, site: AnySite) -> None:
        """Now, unless nobody would hear it."""
        if not (site.site.is_frozen or site.site.is_cut):
            load = site.load()
            if site in self._leaving:
                load = replace(load, is_serving=False, is_draining=True)
            self._world.ledger.reported(site.site.member.role, load)
            site.site.tell_router(partial(self.router.report, site.site, load))

    def _bury(self, site: AnySite) -> None:
        site.site.die()
        site.fetches.die()
        self._busy_s[site.site.member.role] += site.site.stepper.busy_s
        self._num_preemptions += site.site.batcher.counters.num_preemptions
        site.site.stepper.busy_s = 0.0
        site.site.batcher.counters.num_preemptions = 0

    def _lose_calls(self, site: AnySite) -> None:
        worker = site.site.member.worker
        self.router.pool.unreachable(worker.worker_id, worker.incarnation, self._world.agenda.now_s)
        self._lose_answers(site)

    def _lose_answers(self, site: AnySite) -> None:
        sent = self._sent.pop(site, {})
        for answer in self.router.calls_of(site.site):
            # What was drawn behind a cut never left: others draw it again.
            answer.num_tokens = sent.get(answer, answer.num_tokens)
            self.router.lost(answer, site.site)

    def _hear_silence(self, peer: DecodeSite, site: PrefillSite, since_s: float) -> None:
        if site.site.frozen_at_s == since_s:
            peer.writer_silent(site)

    def _kill_frozen(self, site: AnySite, since_s: float) -> None:
        """The supervisor does."""
        if site.site.frozen_at_s == since_s and self.sites[site.site.worker] is site:
            self.crash(site.site.worker)

    def _give_up(self, site: AnySite, since_s: float) -> None:
        """The router takes a worker that it cannot reach for lost, and so do its calls."""
        if site.site.cut_at_s != since_s or site.site.is_dead:
            return
        self.router.leave(site)
        site.site.forget_router()
        if isinstance(site, DecodeSite):
            for answer in self.router.calls_of(site.site):
                site.drop(answer)
        self._lose_answers(site)

    def _alive(self) -> list[AnySite]:
        return [site for site in self.sites.values() if not site.site.is_dead]

    def _decodes(self) -> list[DecodeSite]:
        return [site for site in self._alive() if isinstance(site, DecodeSite)]
