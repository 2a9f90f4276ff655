"""One life of a modelled worker, of either role: its pool, batcher, engine and step loop, and
how messages reach it. The scheduler and what the role does with it come from the role's file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cluster.types import BlockId, CacheChange, LinkCost, Member, Role, WorkerId
from decode_worker.scheduler import DecodeScheduler
from engine.block_pool import BlockPool
from engine.budget import Budget
from prefill_worker.scheduler import PrefillScheduler
from router.policy import Policy
from simulator.agenda import Action, Agenda
from simulator.feed import Feed
from simulator.jumping_batcher import JumpingBatcher
from simulator.modelled_engine import KnownCost, ModelledEngine
from simulator.report import Ledger
from simulator.setting import Setting
from simulator.stepper import Rows, Stepper


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Holds what all workers of one simulation share."""

    agenda: Agenda
    setting: Setting
    policy: Policy
    grain: int
    ledger: Ledger
    seed: int
    jumps: bool
    links: tuple[LinkCost, ...]  # from any worker; the same for each


class Site:
    """Ends with a crash; a restarted worker is a new one."""

    def __init__(
        self,
        world: World,
        member: Member,
        *,
        rank: int,
        hear: Callable[["Site", int, CacheChange], None],
    ) -> None:
        """`hear`: the router's ear for cache events, when they arrive there."""
        setting, role = world.setting, member.role
        make = setting.make(role)
        self.world = world
        self.member = member
        self.make = make
        self.is_dead = False
        self.frozen_at_s: float | None = None
        self.cut_at_s: float | None = None  # from the router
        self.cost = KnownCost(make.prefill_cost, make.decode_cost, noise=setting.noise)
        self.pool = BlockPool(make.num_blocks, make.block_size, world.grain)
        self.batcher = _batcher(self, role)
        tell = partial(self._tell_events, hear)
        self.feed = Feed(member.worker.incarnation, self.pool, tell, world.links)
        engine = ModelledEngine(
            self.cost, noise=setting.noise, gap_s=setting.step_gap_s, seed=world.seed * 4096 + rank
        )
        self.stepper = Stepper(
            world.agenda, self.batcher, engine, self.feed.flush, rank=rank, jumps=world.jumps
        )
        self._scheduler: PrefillScheduler | DecodeScheduler | None = None
        self._held: list[Action] = []  # messages for a frozen process
        self._awaiting: list[Action] = []  # what peers do once it answers, or is dead
        self._held_up: list[Action] = []  # to and from the router, while it is cut off
        self._held_down: list[Action] = []

    @property
    def worker(self) -> WorkerId:
        return self.member.worker.worker_id

    @property
    def is_frozen(self) -> bool:
        return self.frozen_at_s is not None

    @property
    def is_cut(self) -> bool:
        return self.cut_at_s is not None

    def drive(
        self, scheduler: PrefillScheduler | DecodeScheduler, rows: Rows | None = None
    ) -> None:
        self._scheduler = scheduler
        self.stepper.drive(scheduler, rows)

    def give_back(self, blocks: list[BlockId]) -> None:
        """Held for a peer until now."""
        assert self._scheduler is not None
        self._scheduler.release(blocks)

    # -- messages ----------------------------------------------------------------------------

    def post(self, seconds: float, action: Action) -> None:
        """A message of a peer, or something of its own, that reaches it after `seconds`."""
        self.world.agenda.after(seconds, partial(self._deliver, action))

    def post_quietly(self, seconds: float, action: Action) -> None:
        """One that changes nothing of what runs, but that it may take memory: a run goes on
        over it."""
        self.world.agenda.after(seconds, partial(self._deliver_quietly, action))

    def post_silently(self, seconds: float, action: Action) -> None:
        """One that neither sees nor changes what runs or is cached. An action that does after
        all calls `stepper.touch` first."""
        self.world.agenda.after(seconds, partial(self._deliver_silently, action))

    def post_from_router(self, action: Action) -> None:
        """Silently."""
        if self.is_cut:
            self._held_down.append(action)
        else:
            self.post_silently(self.world.setting.message_s, action)

    def tell_router(self, action: Action) -> None:
        if self.is_cut:
            self._held_up.append(action)
        else:
            self.world.agenda.after(self.world.setting.message_s, action)

    def _tell_events(
        self, hear: Callable[["Site", int, CacheChange], None], number: int, change: CacheChange
    ) -> None:
        if not self.is_cut:
            event_s = self.world.setting.event_s
            self.world.agenda.after(event_s, partial(hear, self, number, change))

    def _deliver(self, action: Action) -> None:
        if self.is_dead:
            return
        if self.is_frozen:
            self._held.append(action)
            return
        self.stepper.touch()
        action()
        self.feed.flush()

    def _deliver_quietly(self, action: Action) -> None:
        if self.is_dead or self.is_frozen:
            self._deliver(action)
            return
        self.stepper.sync()
        action()
        self.stepper.check_room()
        self.feed.flush()

    def _deliver_silently(self, action: Action) -> None:
        if self.is_dead or self.is_frozen:
            self._deliver(action)
        else:
            action()

    # -- faults ------------------------------------------------------------------------------

    def freeze(self) -> None:
        self.frozen_at_s = self.world.agenda.now_s
        self.stepper.freeze()

    def when_answers(self, action: Action) -> None:
        """It is frozen: `action` follows its next sign of life, or its death."""
        self._awaiting.append(action)

    def thaw(self) -> None:
        self.frozen_at_s = None
        self._answer()
        held, self._held = self._held, []
        for action in held:
            self.post(0.0, action)
        self.stepper.thaw()

    def cut(self) -> None:
        """The router and it do not reach each other."""
        self.stepper.sync()
        self.cut_at_s = self.world.agenda.now_s

    def forget_router(self) -> None:
        """Its connection is given up: what waited on it never comes."""
        self._held_up, self._held_down = [], []

    def heal(self) -> None:
        """Reached by the router again: what waited comes now."""
        self.cut_at_s = None
        up, self._held_up = self._held_up, []
        down, self._held_down = self._held_down, []
        for action in up:
            self.tell_router(action)
        for action in down:
            self.post_from_router(action)

    def be_slower(self, factor: float) -> None:
        self.stepper.touch()
        self.cost.be_slower(factor)

    def die(self) -> None:
        self.is_dead = True
        self.stepper.stop()
        self._answer()

    def _answer(self) -> None:
        awaiting, self._awaiting = self._awaiting, []
        for action in awaiting:
            self.world.agenda.after(self.world.setting.message_s, action)


def _batcher(site: Site, role: Role) -> JumpingBatcher:
    make, cost = site.make, site.cost
    budget = Budget(
        max_sequences=make.max_sequences, max_tokens=make.max_batch_tokens, chunk_s=make.chunk_s
    )
    is_prefill = role is Role.PREFILL
    return JumpingBatcher(
        site.pool,
        budget,
        prefill_cost=lambda: cost.prefill,
        decode_cost=lambda: cost.decode,
        decodes=not is_prefill,
        reserve_blocks=int(make.num_blocks * make.watermark) if is_prefill else 0,
        clock=lambda: site.world.agenda.now_s,
    )
