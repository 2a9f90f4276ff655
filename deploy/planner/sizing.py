"""The fewest GPUs that would have been enough for what came: rehearsed, from the present size on,
down as long as less does, or up until it does. Pure.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import ceil, inf, log2

from cluster.types import Role
from deploy.planner.direction import Counts
from deploy.planner.settings import MAX_WORKERS, Bounds
from router.learned.reuse import SIZES
from simulator.rehearsal import Come, rehearse
from simulator.setting import Setting

_LEAST_PERIOD_S = 5.0
_MOST_REPEATED = 1000  # requests, with all repetitions
EFFICIENCY = 0.25  # they hold the same, in part, and what runs needs room; where it is not known
_LEVELS = 8  # steps at which sizes of caches are told apart, to a doubling
_NUM_SPLITS = 5  # of as many GPUs, the nearest to the present one
_AMPLE = 1.5  # times the workers that the work alone would keep busy, and some


@dataclass(frozen=True)
class Sizing:
    """Sizes pools for one stretch of traffic."""

    seen: Sequence[Come]
    setting: Setting
    bounds: Bounds
    goal: float
    cache_tokens: float  # of one cache as good as those of the workers that computed `seen`
    efficiency: float = EFFICIENCY  # of several caches against one as large as all
    least_s: float = 600.0  # shorter ones are repeated: what fills up slowly shows late

    @cached_property
    def requests(self) -> Sequence[Come]:
        if not self.seen:
            return ()
        seen, begin_s = self.seen, self.seen[0].arrived_at
        period_s = max(_LEAST_PERIOD_S, seen[-1].arrived_at - begin_s)
        num = max(1, min(ceil(self.least_s / period_s), _MOST_REPEATED // len(seen)))
        return [
            replace(each, arrived_at=each.arrived_at - begin_s + turn * period_s)
            for turn in range(num)
            for each in seen
        ]

    @cached_property
    def _by_cache(self) -> dict[int, Sequence[Come]]:
        """Keeps the requests by the step at which a size of caches lies."""
        return {}

    @property
    def bad_share(self) -> float:
        return self.most_bad / len(self.requests)

    @cached_property
    def most_bad(self) -> int:
        """Counts the requests that may miss their targets: those that would with any number of
        workers, and the goal's share of the others."""
        return len(self.requests) - round(self.goal * self.num_good(self.ample))

    @cached_property
    def ample(self) -> Counts:
        """More than enough, whatever the bounds."""
        if not self.requests:
            return Counts(0, 1)
        period_s = max(_LEAST_PERIOD_S, self.requests[-1].arrived_at)
        cost, decode = self.setting.prefill.prefill_cost, self.setting.decode
        prompts_s = sum(cost.seconds(each.num_new, each.num_prompt) for each in self.requests)
        busy = _AMPLE * prompts_s / period_s + 2
        held = sum(
            (each.num_prompt + each.num_output) * each.num_output * each.itl_s
            for each in self.requests
        )
        num_decode = round(busy + held / period_s / decode.cache_tokens)
        return Counts(min(round(2 * busy), MAX_WORKERS), min(num_decode, MAX_WORKERS))

    @property
    def most(self) -> Counts:
        """Gives as much of that as the bounds allow."""
        return self.bounded(*self.ample)

    def bounded(self, prefill: int, decode: int) -> Counts:
        """The nearest that the bounds allow."""
        (least_p, most_p), (least_d, most_d) = map(self.bounds.of, Role)
        return Counts(min(max(prefill, least_p), most_p), max(1, min(max(decode, least_d), most_d)))

    def suffices(self, counts: Counts, faster: float = 1.0, leeway: float = 0.0) -> bool:
        """Tells whether it would have been enough, had everything come `faster` times as fast;
        `leeway`: this share of the requests may be late besides."""
        most_bad = self.most_bad + leeway * len(self.requests)
        return counts.decode > 0 and self._num_good(counts, most_bad, faster) is not None

    def cheapest(self, now: Counts, faster: float) -> Counts:
        """The fewest GPUs that suffice; of equals the split that is nearest to the present one."""
        sizes = self.by_gpus(now)
        gpus = sorted(sizes)
        here = self.num_gpus(now)
        found: Counts | None = None
        for num in reversed([num for num in gpus if num <= here]):
            best = self._first(sizes[num], faster)
            if best is None:
                break
            found = best
        if found is not None:
            return found
        for num in (num for num in gpus if num > here):
            if (best := self._first(sizes[num], faster)) is not None:
                return best
        return self.most

    def _first(self, sizes: Iterable[Counts], faster: float) -> Counts | None:
        return next((counts for counts in sizes if self.suffices(counts, faster)), None)

    def by_gpus(self, now: Counts) -> dict[float, list[Counts]]:
        """Sizes within the bounds by what they cost, the nearest to the present split first."""
        (least_p, _), (least_d, _) = map(self.bounds.of, Role)
        most_p, most_d = map(max, self.most, now)
        sizes: dict[float, list[Counts]] = {}
        for pair in product(range(least_p, most_p + 1), range(max(1, least_d), most_d + 1)):
            counts = Counts(*pair)
            sizes.setdefault(self.num_gpus(counts), []).append(counts)
        nearness = _nearness(now)
        return {num: sorted(each, key=nearness)[:_NUM_SPLITS] for num, each in sizes.items()}

    def num_gpus(self, counts: Counts) -> float:
        setting = self.setting
        return counts.prefill * setting.prefill.num_gpus + counts.decode * setting.decode.num_gpus

    def num_good(self, counts: Counts) -> int:
        return self._num_good(counts, inf) or 0

    def _num_good(self, counts: Counts, most_bad: float, faster: float = 1.0) -> int | None:
        requests = self._with_caches(counts)
        if faster != 1.0:
            requests = [replace(each, arrived_at=each.arrived_at / faster) for each in requests]
        return rehearse(requests, self.setting, counts.prefill, counts.decode, most_bad)

    def _with_caches(self, counts: Counts) -> Sequence[Come]:
        """Gives what came, computed by so many workers, which cache more or less than there are."""
        num_tokens = self.efficiency * all_caches(self.setting, counts)
        step = round(_LEVELS * level(num_tokens))
        if step not in self._by_cache:
            now, then = level(self.cache_tokens), step / _LEVELS
            self._by_cache[step] = [_cached(each, now, then) for each in self.requests]
        return self._by_cache[step]


def all_caches(setting: Setting, counts: Counts) -> int:
    """Tokens."""
    prefill, decode = setting.prefill.cache_tokens, setting.decode.cache_tokens
    return counts.prefill * prefill + counts.decode * decode


def present_cache(requests: Sequence[Come]) -> float:
    """The size of one cache that would have held as much of what came as was found cached."""
    num_found = sum(each.num_prompt - each.num_new for each in requests)
    held = [sum(held_tokens(each, float(at)) for each in requests) for at in range(len(SIZES))]
    above = next((at for at, num in enumerate(held) if num >= num_found), len(SIZES) - 1)
    if not above:
        return float(SIZES[0])
    low, high = held[above - 1 : above + 1]
    share = min(1.0, (num_found - low) / max(1.0, high - low))
    return SIZES[above - 1] * float(2.0**share)


def as_cached_lately(requests: Sequence[Come], since_s: float) -> tuple[Sequence[Come], float]:
    """Finds with how large a cache requests were computed since then; and those before as if with
    the same, for there may have been fewer workers, or more."""
    lately = [each for each in requests if each.arrived_at >= since_s]
    cache_tokens = present_cache(lately or requests)
    at = level(cache_tokens)
    before = requests[: len(requests) - len(lately)] if lately else ()
    return [*(_cached_at(each, at) for each in before), *(lately or requests)], cache_tokens


def level(num_tokens: float) -> float:
    """Gives the place of this one among the sizes of caches."""
    return min(max(0.0, log2(num_tokens / SIZES[0])), len(SIZES) - 1.0)


def held_tokens(request: Come, at: float) -> float:
    """Counts the tokens of its prompt that a cache of this level holds."""
    if not request.num_reusable:
        return 0.0
    below = min(int(at), len(request.num_reusable) - 2)
    low, high = request.num_reusable[below : below + 2]
    return low + (at - below) * (high - low)


def _cached(request: Come, now: float, then: float) -> Come:
    gained = held_tokens(request, then) - held_tokens(request, now)
    num_new = min(max(1, round(request.num_new - gained)), request.num_prompt)
    return replace(request, num_new=num_new)


def _cached_at(request: Come, at: float) -> Come:
    num_new = max(1, round(request.num_prompt - held_tokens(request, at)))
    return replace(request, num_new=num_new) if request.num_reusable else request


def _nearness(now: Counts) -> Callable[[Counts], tuple[float, int]]:
    """Measures how near counts are by their share of prefill workers."""
    share = now.prefill / max(1, now.num)
    return lambda counts: (abs(counts.prefill / counts.num - share), counts.prefill)
