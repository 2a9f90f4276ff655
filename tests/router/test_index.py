"""The index says who holds which prefix, and never more than its budget."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cluster.types import CacheChange, GrainHash, Incarnation, WorkerId
from router.index import ENTRY_BYTES, PrefixIndex
from tests.router.pool_samples import matched

AMPLE = 64 << 20
A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")
LIFE = Incarnation("life-1")


def grain(number: int) -> GrainHash:
    return GrainHash(number.to_bytes(16, "little"))


def chain(start: int, length: int) -> tuple[GrainHash, ...]:
    return tuple(grain(start + offset) for offset in range(length))


def held(index: PrefixIndex, number: int) -> set[WorkerId]:
    return set(matched(index, [grain(number)]))


def test_match_counts_leading_grains_of_each_worker() -> None:
    index = PrefixIndex(AMPLE)
    prompt = chain(0, 4)
    index.replace(A, LIFE, prompt)
    index.replace(B, LIFE, prompt[:2])
    index.replace(C, LIFE, prompt[1:])  # holds the rest, but not the root
    assert matched(index, prompt) == {A: 4, B: 2}
    assert matched(index, [*prompt, grain(99)]) == {A: 4, B: 2}
    assert matched(index, []) == {}


def test_a_hole_ends_the_match() -> None:
    index = PrefixIndex(AMPLE)
    prompt = chain(0, 5)
    index.replace(A, LIFE, prompt)
    assert index.apply(A, LIFE, CacheChange(evicted=(prompt[2],)))
    assert matched(index, prompt) == {A: 2}
    assert index.apply(A, LIFE, CacheChange(stored=(prompt[2],)))
    assert matched(index, prompt) == {A: 5}


def test_a_purged_worker_is_gone_at_once_and_its_next_life_starts_empty() -> None:
    index = PrefixIndex(AMPLE)
    prompt = chain(0, 3)
    index.replace(A, LIFE, prompt)
    index.replace(B, LIFE, prompt)
    index.purge(A, LIFE)
    assert matched(index, prompt) == {B: 3}
    assert not index.apply(A, LIFE, CacheChange(stored=prompt))
    index.replace(A, Incarnation("life-2"), ())
    assert matched(index, prompt) == {B: 3}
    index.check()


def test_events_of_an_earlier_life_are_refused() -> None:
    index = PrefixIndex(AMPLE)
    index.replace(A, Incarnation("life-2"), ())
    assert not index.apply(A, LIFE, CacheChange(stored=chain(0, 3)))
    index.purge(A, LIFE)  # a late purge of the earlier life
    assert index.apply(A, Incarnation("life-2"), CacheChange(stored=chain(0, 3)))
    assert matched(index, chain(0, 3)) == {A: 3}


def test_the_budget_is_kept_and_what_is_used_is_kept_longest() -> None:
    index = PrefixIndex(1000 * ENTRY_BYTES)
    index.replace(A, LIFE, ())
    popular = chain(0, 50)
    index.apply(A, LIFE, CacheChange(stored=popular))
    for start in range(1000, 21_000, 100):
        index.apply(A, LIFE, CacheChange(stored=chain(start, 100)))
        matched(index, popular)
        assert index.num_bytes <= index.budget_bytes
        assert index.num_grains <= 2 * index.capacity + 100
    index.check()
    assert index.num_forgotten >= 17_000
    assert matched(index, popular) == {A: 50}
    assert matched(index, chain(1000, 100)) == {}


def test_what_fits_the_budget_is_never_forgotten_however_much_has_gone_through() -> None:
    index = PrefixIndex(1000 * ENTRY_BYTES)
    index.replace(A, LIFE, ())
    cache = [chain(start, 50) for start in range(0, 1000, 50)]
    for stored in cache:
        index.apply(A, LIFE, CacheChange(stored=stored))
    for start in range(1000, 50_000, 50):
        cache.append(chain(start, 50))
        index.apply(A, LIFE, CacheChange(evicted=cache.pop(0)))
        index.apply(A, LIFE, CacheChange(stored=cache[-1]))
        index.check()
    assert all(matched(index, each) == {A: 50} for each in cache)
    assert index.num_forgotten == 0
    assert index.num_bytes <= index.budget_bytes


def test_the_root_of_a_chain_outlives_its_leaves() -> None:
    index = PrefixIndex(100 * ENTRY_BYTES)
    index.replace(A, LIFE, ())
    old = chain(0, 150)
    index.apply(A, LIFE, CacheChange(stored=old))
    index.apply(A, LIFE, CacheChange(stored=chain(1000, 90)))
    (num,) = matched(index, old).values()
    assert 20 < num < 100
    index.check()


def test_a_prompt_that_is_asked_for_outlives_what_is_not() -> None:
    index = PrefixIndex(100 * ENTRY_BYTES)
    index.replace(A, LIFE, chain(0, 90))
    index.replace(B, LIFE, chain(60, 20))
    for start in range(1000, 2000, 30):
        index.apply(B, LIFE, CacheChange(stored=chain(start, 30)))
        assert matched(index, chain(60, 20)) == {A: 20, B: 20}
        index.check()
    assert matched(index, chain(0, 90)) == {}
    assert index.num_grains_of(A) == 20


def test_staleness_is_the_age_of_the_last_report() -> None:
    index = PrefixIndex(AMPLE)
    index.replace(A, LIFE, ())
    index.mark_fresh(A, 10.0)
    index.mark_fresh(B, 10.0)  # unknown: ignored
    assert index.staleness_s(10.5) == {A: 0.5}


class Caches(RuleBasedStateMachine):
    """Workers with caches, and an index that follows them."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(AMPLE)
        self.caches: dict[WorkerId, set[GrainHash]] = {}
        self.lives = dict.fromkeys((A, B, C), 0)

    workers = st.sampled_from((A, B, C))
    grains = st.lists(st.integers(0, 30), max_size=12)

    def life(self, worker: WorkerId) -> Incarnation:
        return Incarnation(f"life-{self.lives[worker]}")

    @rule(worker=workers, stored=grains, evicted=grains)
    def change(self, worker: WorkerId, stored: list[int], evicted: list[int]) -> None:
        change = CacheChange(stored=tuple(map(grain, stored)), evicted=tuple(map(grain, evicted)))
        known = self.index.apply(worker, self.life(worker), change)
        assert known == (worker in self.caches)
        if known:
            self.caches[worker] |= set(change.stored)
            self.caches[worker] -= set(change.evicted)

    @rule(worker=workers, content=grains, restarted=st.booleans())
    def snapshot(self, worker: WorkerId, content: list[int], restarted: bool) -> None:
        self.lives[worker] += restarted
        self.index.replace(worker, self.life(worker), [grain(n) for n in content])
        self.caches[worker] = {grain(n) for n in content}

    @rule(worker=workers)
    def purge(self, worker: WorkerId) -> None:
        self.index.purge(worker, self.life(worker))
        self.caches.pop(worker, None)

    @invariant()
    def equals_the_union(self) -> None:
        self.index.check()
        for number in range(31):
            expected = {w for w, cache in self.caches.items() if grain(number) in cache}
            assert held(self.index, number) == expected
        for worker, cache in self.caches.items():
            assert self.index.num_grains_of(worker) == len(cache)


class TestCaches(Caches.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.slow
def test_many_workers_come_and_go_and_their_bits_are_used_again() -> None:
    index = PrefixIndex(4000 * ENTRY_BYTES)
    random_numbers = random.Random(7)
    for life in range(400):
        worker = WorkerId(f"w{random_numbers.randrange(12)}")
        incarnation = Incarnation(str(life))
        start = random_numbers.randrange(3000)
        index.replace(worker, incarnation, chain(start, 200))
        for _ in range(5):
            index.apply(worker, incarnation, CacheChange(stored=chain(start + 200, 40)))
        index.check()
    assert len(index.numbering._workers) <= 40  # not one a life


@given(st.lists(st.integers(0, 400), min_size=1, max_size=300))
@settings(max_examples=30, deadline=None)
def test_the_index_never_claims_what_no_worker_holds(starts: list[int]) -> None:
    index = PrefixIndex(100 * ENTRY_BYTES)
    index.replace(A, LIFE, ())
    cache: set[GrainHash] = set()
    for start in starts:
        stored = chain(start, 7)
        index.apply(A, LIFE, CacheChange(stored=stored, evicted=(stored[3],)))
        cache |= set(stored)
        cache.discard(stored[3])
        index.check()
    for number in range(410):
        if held(index, number):
            assert grain(number) in cache
