"""A prompt that counts on a prefix which another one fetches is told the source, too: it may reach
their worker first, and would compute what is on its way."""

from itertools import permutations

import pytest

from cluster.types import DecodeCost, GrainHash, LoadReport, PrefillCost, WorkerId
from router.fetches import Missing
from router.flight import Ask, Begun, Left
from router.index import PrefixIndex
from router.placer import Placer
from router.policy import Decision
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


def test_who_is_placed_behind_a_fetch_is_told_its_source() -> None:
    cluster = Cluster()
    first, second = cluster.place(1), cluster.place(2)
    assert first.placement.computing == second.placement.computing == OTHER
    assert first.placement.source == second.placement.source == HOLDER
    assert second.placement.num_source_tokens == GRAIN * NUM_SHARED
    assert second.num_cached_tokens == first.num_cached_tokens, "and it is priced as cached"


@pytest.mark.parametrize("order", list(permutations("123")), ids="".join)
@pytest.mark.parametrize("ends", ["first token", "release"])
def test_what_has_come_or_was_given_up_has_no_source_any_more(
    ends: str, order: tuple[str, ...]
) -> None:
    cluster = Cluster()
    decisions = {str(number): cluster.place(number) for number in (1, 2, 3)}
    for request_id in order:
        decision = decisions[request_id]
        if ends == "first token":
            cluster.placer.told(request_id, Begun(decision.num_cached_tokens), 0.0)
        else:
            cluster.placer.told(request_id, Left(), 0.0)
        cluster.placer.check()
    assert cluster.placer.fetches.source(Missing(OTHER, SHARED[0])) is None


def test_a_fetch_lasts_as_long_as_anybody_who_was_told_of_it() -> None:
    cluster = Cluster()
    cluster.place(1)
    cluster.place(2)
    cluster.placer.told("2", Left(), 0.0)
    cluster.placer.check()
    assert cluster.placer.fetches.source(Missing(OTHER, SHARED[0])) == HOLDER


def test_who_computes_its_prefix_itself_is_told_none() -> None:
    cluster = Cluster()
    cluster.placer.index.replace(HOLDER, member(HOLDER).worker.incarnation, ())
    assert [cluster.place(number).placement.source for number in (1, 2)] == [None, None]
