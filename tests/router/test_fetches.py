"""A prompt that counts on a prefix which another one fetches is told the source, too: it may reach
their worker first, and would compute what is on its way."""

from itertools import permutations

import pytest

from router.fetches import Missing
from router.flight import Begun, Left
from tests.router.holder_and_other import GRAIN, HOLDER, NUM_SHARED, OTHER, SHARED, Cluster
from tests.router.pool_samples import member


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
    assert cluster.placer.books.fetches.source(Missing(OTHER, SHARED[0])) is None


def test_a_fetch_lasts_as_long_as_anybody_who_was_told_of_it() -> None:
    cluster = Cluster()
    cluster.place(1)
    cluster.place(2)
    cluster.placer.told("2", Left(), 0.0)
    cluster.placer.check()
    assert cluster.placer.books.fetches.source(Missing(OTHER, SHARED[0])) == HOLDER


def test_who_computes_its_prefix_itself_is_told_none() -> None:
    cluster = Cluster()
    cluster.placer.index.replace(HOLDER, member(HOLDER).worker.incarnation, ())
    assert [cluster.place(number).placement.source for number in (1, 2)] == [None, None]
