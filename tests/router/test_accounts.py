"""Whatever becomes of requests and workers: nothing is counted for those that have ended."""

import random
from dataclasses import dataclass, field

import pytest

from cluster.errors import Overloaded
from cluster.types import GrainHash, LoadReport, Role, WorkerId
from router.decision import Decision
from router.fetches import Missing
from router.flight import Ask, Begun, Ended, Left
from router.index import PrefixIndex
from router.placer import Placer
from router.policies.registry import RULES
from router.policy import Disaggregate, Policy
from router.pool import Pool
from router.records import Fate
from router.rollout.generations import Generations
from router.speculation import LINGER_S
from tests.router.pool_samples import member

GRAIN = 16
WORKERS = {"p0": Role.PREFILL, "p1": Role.PREFILL, "d0": Role.DECODE, "d1": Role.DECODE}
SHARED = tuple(GrainHash(number.to_bytes(16, "little")) for number in range(60))


@dataclass(slots=True)
class Placed:
    ask: Ask
    decision: Decision
    excluded: frozenset[WorkerId] = frozenset()
    has_begun: bool = False


@dataclass(slots=True)
class Drawn:
    """A router to which anything happens that may happen to one."""

    draw: random.Random
    placer: Placer
    now: float = 0.0
    placed: dict[str, Placed] = field(default_factory=dict)
    num_asked: int = 0
    num_lives: int = 0

    def join(self) -> None:
        """A worker begins a life; of an earlier one the router may have seen the end."""
        name, role = self.draw.choice(list(WORKERS.items()))
        old = self.placer.pool.address(WorkerId(name))
        if old is not None and self.draw.random() < 0.5:
            self.placer.books.leave(old.worker_id, old.incarnation)
        self.num_lives += 1
        joins = member(name, role, life=str(self.num_lives))
        life, worker = joins.worker.incarnation, joins.worker.worker_id
        waits = ((0.0, 9 * self.draw.random()),) if self.draw.random() < 0.6 else ()
        report = LoadReport(num_blocks=10_000, num_free_blocks=10_000, backlog=waits)
        self.placer.pool.join(joins)
        self.placer.pool.report(worker, life, report, self.now)
        self.placer.index.replace(worker, life, SHARED[: self.draw.randrange(60)])

    def ask(self) -> None:
        self.num_asked += 1
        own = tuple(GrainHash(self.draw.randbytes(16)) for _ in range(self.draw.randrange(3)))
        hashes = (*SHARED[: self.draw.randrange(60)], *own)
        ask = Ask(
            request_id=str(self.num_asked),
            hashes=hashes,
            num_prompt_tokens=GRAIN * len(hashes) + 1,
            max_tokens=9,
            arrived_at=self.now,
        )
        try:
            decision = self.placer.place(ask, self.now)
        except Overloaded:
            decision = None
        self._put(ask, decision, frozenset())

    def begin(self, request_id: str, placed: Placed) -> None:
        self.placer.told(request_id, Begun(placed.decision.num_cached_tokens), self.now)
        placed.has_begun = True

    def move(self, request_id: str, placed: Placed) -> None:
        self.placer.pool.fail(placed.decision.placement.decode, self.now)
        self.placer.told(request_id, Left(), self.now)
        excluded = placed.excluded | {placed.decision.placement.decode}
        decision = self.placer.place(placed.ask, self.now, excluded)
        self._put(placed.ask, decision, excluded, has_begun=placed.has_begun)

    def end(self, request_id: str, placed: Placed) -> None:
        is_whole = placed.has_begun and self.draw.random() < 0.7
        fate = Fate.FINISHED if is_whole else self.draw.choice([Fate.FAILED, Fate.CANCELLED])
        if self.draw.random() < 0.3:
            self.placer.told(request_id, Left(), self.now)
        self.placer.told(request_id, Ended(fate, 5), self.now)
        del self.placed[request_id]

    def step(self) -> None:
        self.now += self.draw.choice([0.02, 0.02, 1.0])
        happens = self.draw.choice(
            [self.join, *4 * [self.ask], *3 * [self.begin], *3 * [self.end], self.move]
        )
        if happens in (self.join, self.ask):
            happens()
        elif self.placed:
            happens(*self.draw.choice(list(self.placed.items())))

    def _put(
        self,
        ask: Ask,
        decision: Decision | None,
        excluded: frozenset[WorkerId],
        *,
        has_begun: bool = False,
    ) -> None:
        self.placed.pop(ask.request_id, None)
        if decision is None:
            self.placer.told(ask.request_id, Ended(Fate.FAILED), self.now)
        else:
            self.placed[ask.request_id] = Placed(ask, decision, excluded, has_begun)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_counted_for_who_has_ended(seed: int) -> None:
    draw = random.Random(seed)
    policy = Policy(
        rule=RULES[draw.choice(list(RULES))](), disaggregate=draw.choice(list(Disaggregate))
    )
    placer = Placer(Pool(), PrefixIndex(1 << 20), GRAIN, Generations(policy))
    drawn = Drawn(draw, placer)
    for _ in range(200):
        drawn.step()
        placer.check()
    for request_id, placed in list(drawn.placed.items()):
        drawn.end(request_id, placed)
    placer.books.speculation.lapse(drawn.now + LINGER_S)
    placer.check()
    assert placer.pool.num_in_flight == placer.books.speculation.num_grains == 0
    assert not list(placer.in_flight)
    assert not any(placer.books.siblings.behind(grain) for grain in SHARED)
    assert not any(
        placer.books.fetches.source(Missing(WorkerId(name), g)) for name in WORKERS for g in SHARED
    )
