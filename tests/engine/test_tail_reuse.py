"""What an eviction loses: how much of what became old in a cache was found again."""

from collections import OrderedDict

import pytest

from engine.tail_reuse import TailReuse

NUM = 100  # places


class Cache:
    def __init__(self) -> None:
        self.tail = TailReuse(NUM)
        self._held: OrderedDict[object, int] = OrderedDict()

    def use(self, thing: object) -> None:
        if (since := self._held.get(thing)) is not None:
            self.tail.found(since, len(self._held))
        self._held[thing] = self.tail.age
        self._held.move_to_end(thing)
        if len(self._held) > NUM:
            self._held.popitem(last=False)
            self.tail.evicted()


def test_nothing_is_lost_where_nothing_comes_again_or_all_of_it_too_late() -> None:
    for num_things in (10**6, NUM + 1):  # in rotation: each is evicted right before its turn
        cache = Cache()
        for number in range(1000):
            cache.use(number % num_things)
        assert cache.tail.share == 0.0


def test_what_is_found_when_it_is_old_would_have_been_lost() -> None:
    cache = Cache()
    for number in range(2000):
        cache.use(number)
        cache.use(number - 40)  # eighty others were used since: among those that go next
    assert cache.tail.share > 0.4


@pytest.mark.parametrize("num_hot", [0, 2, 10])
def test_what_comes_back_soon_is_not_old_whatever_else_is_used_meanwhile(num_hot: int) -> None:
    cache = Cache()
    for number in range(1500):
        cache.use(number)
        for hot in range(num_hot):
            cache.use(f"hot {hot}")
        cache.use(number - 20)
    assert cache.tail.share == 0.0


def test_it_forgets_as_the_cache_turns_over() -> None:
    cache = Cache()
    for number in range(2000):
        cache.use(number)
        cache.use(number - 40)
    for number in range(10_000, 11_000):
        cache.use(number)
    assert cache.tail.share < 0.01
