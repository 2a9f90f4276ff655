"""Two workers, of which one has the prefix."""

from cluster.types import DecodeCost, GrainHash, LoadReport, PrefillCost, WorkerId
from router.decision import Decision
from router.flight import Ask
from router.index import PrefixIndex
from router.placer import Placer
from router.pool import Pool
from tests.router.pool_samples import member

HOLDER, OTHER = WorkerId("holder"), WorkerId("other")
GRAIN, NUM_SHARED = 16, 100
SHARED = tuple(GrainHash(number.to_bytes(16, "little")) for number in range(NUM_SHARED))


class Cluster:
    """Two workers, of which one has the prefix, and its hands full."""

    def __init__(self) -> None:
        self.placer = Placer(Pool(), PrefixIndex(1 << 20), GRAIN)
        self.report(HOLDER, waits_s=10.0)
        self.report(OTHER)
        life = member(HOLDER).worker.incarnation
        self.placer.index.replace(HOLDER, life, SHARED)

    def report(self, name: WorkerId, waits_s: float = 0.0) -> None:
        life = member(name).worker.incarnation
        self.placer.pool.join(member(name))
        report = LoadReport(
            num_blocks=10_000,
            num_free_blocks=10_000,
            num_unused_blocks=10_000,
            prefill_cost=PrefillCost(c0=0.01, c1=0.001),
            decode_cost=DecodeCost(d0=0.01),
            backlog=((0.0, waits_s),) if waits_s else (),
        )
        self.placer.pool.report(name, life, report, 0.0)

    def place(self, number: int, *, num_shared: int = NUM_SHARED) -> Decision:
        own = GrainHash((1000 + number).to_bytes(16, "little"))
        hashes = (*SHARED[:num_shared], own)
        num_tokens = GRAIN * len(hashes) + 1
        ask = Ask(
            request_id=str(number),
            hashes=hashes,
            num_prompt_tokens=num_tokens,
            max_tokens=1,
            arrived_at=0.0,
        )
        decision = self.placer.place(ask, 0.0)
        assert decision is not None
        self.placer.check()
        return decision
