"""A cluster of values for a planner's loop: machines, routers and workers that do as they are told,
and a store. Nothing of it waits."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from cluster.errors import WorkerLost
from cluster.sealed_store import SealedStore
from cluster.store import MemoryStore
from cluster.types import DecodeCost, DrainReport, LoadReport, PrefillCost, Role
from deploy.placed import StartOrder
from deploy.placement import Wanted
from deploy.plan import Part
from deploy.planner.lease import Lease
from deploy.planner.loop import PlannerLoop
from deploy.planner.on_ray import Placements
from deploy.planner.record import LEASE_KEY
from deploy.planner.roster import PlannedPool
from deploy.planner.routers import Question, Seen
from deploy.planner.settings import PlannerSettings
from router.learned.traffic import Arrival
from router.pool import MemberStatus
from tests.router.pool_samples import member

# Whoever goes may go at once, and may come back at once.
HASTY = PlannerSettings(window_s=60.0, hold_s=0.0, calm_s=0.0)
REPORT = LoadReport(
    num_blocks=1000,
    num_free_blocks=1000,
    prefill_cost=PrefillCost(c0=0.01, c1=1e-3),
    decode_cost=DecodeCost(d0=0.01),
)


def planned_pool(name: str, role: Role, least: int, most: int) -> PlannedPool:
    order = StartOrder(cluster="lab", name=f"{name}-0", part=Part(role), config={"drain_s": 5.0})
    first = Wanted(order=order, resources={"CPU": 1.0})
    return PlannedPool(name=name, role=role, least=least, most=most, first=first.as_json())


@dataclass(slots=True, eq=False)
class PlannedCluster:
    """Fakes of what a planner's loop needs, over one world."""

    pools: tuple[PlannedPool, ...]
    now_s: float = 1000.0
    statuses: dict[str, MemberStatus] = field(default_factory=dict)
    placed: set[str] = field(default_factory=set)
    arrivals: list[Arrival] = field(default_factory=list)
    num_waiting: int = 0
    began_s: float = 0.0
    told: list[str] = field(default_factory=list)  # all that was done, in order
    questions: list[Question] = field(default_factory=list)
    fits: bool = True  # somewhere
    reaches_workers: bool = True
    hears_routers: bool = True
    takes_s: float = 0.0  # each thing that is done
    store: SealedStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = SealedStore(MemoryStore(clock=lambda: self.now_s), "a token")

    def loop(self, name: str = "a", settings: PlannerSettings = HASTY) -> PlannerLoop:
        return PlannerLoop(
            name=name,
            pools=self.pools,
            settings=settings,
            lease=Lease(self.store, LEASE_KEY, name, clock=lambda: self.now_s),
            store=self.store,
            machines=self,
            routers=self,
            clock=lambda: self.now_s,
            wall_clock=lambda: self.now_s,
        )

    async def turn(self, loop: PlannerLoop, num: int = 1) -> list[str]:
        """Looks, a while apart; returns what was done."""
        num_before = len(self.told)
        for _ in range(num):
            self.now_s += 5.0
            if not loop.settings.dry_run:
                await loop.lease.take()
            await loop.turn()
        return self.told[num_before:]

    def serve(self, *names: str, num_in_flight: int = 0) -> None:
        for name in names:
            role = next(pool.role for pool in self.pools if name in pool.workers)
            self.placed.add(name)
            self.statuses[name] = MemberStatus(
                member=member(name, role),
                report=REPORT,
                report_age_s=0.1,
                refusal=None,
                num_in_flight=num_in_flight,
            )

    def drains(self, name: str, *, ends: bool = False) -> None:
        status = self.statuses[name]
        drain = DrainReport(seconds=0.0, left_s=600.0, ends=ends)
        report = replace(status.report, is_draining=True, drain=drain)
        self.statuses[name] = replace(status, report=report, refusal="draining")

    def busy(self, num_in_flight: int, *names: str) -> None:
        for name in names:
            self.statuses[name] = replace(self.statuses[name], num_in_flight=num_in_flight)

    def load(self, rate: float, *, num_prompt_tokens: int = 4000) -> None:
        """As much came in the last minute, and took a second for a thousand tokens."""
        num = int(60.0 * rate)
        self.arrivals = [
            Arrival(
                arrived_at=self.now_s - 60.0 + at / rate,
                num_prompt_tokens=num_prompt_tokens,
                num_cached_tokens=0,
                num_output_tokens=20.0,
                target_ttft_s=8.0,
                target_itl_s=0.1,
                ttft_s=5.0,
                itl_s=0.05,
            )
            for at in range(num)
        ]

    # -- machines ----------------------------------------------------------------------------

    def look(self) -> Placements:
        return Placements(names=frozenset({*self.placed, "router-0"}), routers=("10.0.0.1:50052",))

    def place(self, wanted: Sequence[Wanted]) -> list[str]:
        names = [each.name for each in wanted]
        if not self.fits:
            return [f"No machine has room for {', '.join(names)}."]
        self.told.append(f"place {' '.join(names)}")
        self.placed |= set(names)
        return []

    def release(self, names: Collection[str]) -> list[str]:
        self.told.append(f"release {' '.join(names)}")
        self.placed -= set(names)
        for name in names:
            self.statuses.pop(name, None)
        return []

    # -- routers -----------------------------------------------------------------------------

    async def observe(self, addresses: Sequence[str], question: Question, now_s: float) -> Seen:
        if not self.hears_routers:
            raise WorkerLost("'router-0' is not to be reached.")
        self.questions.append(question)
        recent = [each for each in self.arrivals if each.arrived_at >= now_s - question.window_s]
        return Seen(tuple(recent), dict(self.statuses), self.num_waiting, self.began_s)

    async def drain(
        self, addresses: Sequence[str], worker: str, limit_s: float, *, is_last: bool
    ) -> None:
        self._reach(worker)
        self.told.append(f"drain {worker}{' though it is the last' if is_last else ''}")
        self.drains(worker)

    async def undrain(self, addresses: Sequence[str], worker: str) -> None:
        self._reach(worker)
        self.told.append(f"undrain {worker}")
        status = self.statuses[worker]
        report = replace(status.report, is_draining=False, drain=None)
        self.statuses[worker] = replace(status, report=report, refusal=None)

    def _reach(self, worker: str) -> None:
        self.now_s += self.takes_s
        if not self.reaches_workers:
            raise WorkerLost(f"'{worker}' is not to be reached.")
