"""A placer before one worker that computes prompts first come, first served, in no time but its
own: what admission does over time, without a cluster."""

from dataclasses import dataclass, field

from cluster.types import LoadReport, PrefillCost
from router.flight import Ask, Ended
from router.index import PrefixIndex
from router.placer import Placer
from router.policy import Policy
from router.pool import Pool
from router.records import Fate
from router.rollout.generations import Generations
from tests.router.pool_samples import member

NUM_TOKENS = 1000


@dataclass(slots=True, eq=False)
class OneWorker:
    policy: Policy
    work_s: float  # of each prompt
    free_s: float = 0.0  # when all that was taken on will be computed
    num_asked: int = 0
    placer: Placer = field(init=False)

    def __post_init__(self) -> None:
        pool = Pool()
        pool.join(member("d0"))
        self.placer = Placer(pool, PrefixIndex(1 << 20), 16, Generations(self.policy))

    def ask(self, now: float, tenant: str = "default") -> None:
        """Raises Overloaded."""
        self._report(now)
        self.num_asked += 1
        ask = Ask(
            request_id=str(self.num_asked),
            hashes=(),
            num_prompt_tokens=NUM_TOKENS,
            max_tokens=1,
            arrived_at=now,
            tenant=tenant,
        )
        try:
            self.placer.place(ask, now)
            self.free_s = max(self.free_s, now) + self.work_s
        finally:
            self.placer.told(ask.request_id, Ended(Fate.FINISHED), now)

    def _report(self, now: float) -> None:
        worker, left_s = member("d0").worker, max(0.0, self.free_s - now)
        report = LoadReport(
            num_free_blocks=1000,
            num_blocks=1000,
            prefill_cost=PrefillCost(c0=0.0, c1=self.work_s / NUM_TOKENS),
            backlog=((0.0, left_s),) if left_s else (),
        )
        self.placer.pool.report(worker.worker_id, worker.incarnation, report, now)
