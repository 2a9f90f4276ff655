"""The default: the least price in seconds,

    weight * (wait + lateness) + lambda * (prefill seconds that this prompt adds there + those it
    will cost to recompute what its KV evicts there) + what the answers lose that it keeps waiting,

over every worker, each with its own match or with one fetched from the longest holder. A fetch
runs beside the queue, so that only what outlasts it is waited for.

Lambda says how many wait for a second of a worker's time: this prompt; whoever comes next, as far
as nobody is free for him (the least wait of all, in prompts: one pile beside idle workers makes
nobody scarce); and, while workers are scarce, those who come for what this one holds (a part of
its own queue). Below saturation the request's own latency wins, near it cache reuse does.

A worker that decodes, too, keeps its answers waiting while it computes. Each loses the seconds of
the prompt: all of them where nobody else computes prompts, so that these gather where few answers
are, and the others flow. Where prefill workers could do it, an answer loses them as far as it
cannot spare them: of what there is to spare, the target between tokens times its tokens less the
time that these take, the prompts before this one take their part, too. It is as long as half of the
answers are at most: few long ones, which could wait, do not speak for many short ones. Who becomes
late by it costs half of what a late first token may.

Nobody idles beside a queue: while some worker is idle, nobody waits for his turn longer than that
one needs for the whole prompt and to hand it over; and less where others wait behind the same
prefix, who share the copy that is made of it: the best number of copies grows as the square root
of the demand (as Harris's order quantity, 1913).

What a prompt evicts is missed as far as what became old in that very cache was found again, which
the worker counts, and as far as nobody is free to compute it again; some of it has copies
elsewhere. Without this term copies made by fetching drive out of small caches more than they
bring.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.bounds import check_between
from router.load import Column, Columns, Loads
from router.pair_costs import CANNOT
from router.policies.rule import Computing, Prompt, draw_least_of
from router.price import hand_over_s, times

_LATE_ANSWER = 0.5  # an answer that is late has begun in time: against a late first token
_LEAST_S = 1e-9
_FOLLOWING = 0.125  # of a worker's own queue: so many more will wait for a second that is added
_NO_SCORES: Final[Mapping[int, float]] = MappingProxyType({})


class Way(NamedTuple):
    """Says how a worker comes by the prompt's KV, and what that costs. Float64 arrays, seconds;
    None: 0 for all."""

    wait_s: Column  # [loads] until the prompt's turn, and the end of its fetch
    prefill_s: Column  # [loads]
    first_s: Column  # [loads] both
    late_s: Column | None  # [loads] of the first token, beyond its target
    delay_s: Column  # [those that decode] that answers lose meanwhile
    price_s: Column  # [loads]


class Bids(NamedTuple):
    """Says what it costs that a worker computes the prompt, and of what that is made.

    A worker has two ways: from what it holds, and from a prefix that it fetches (none where a
    fetch can be of no use).
    """

    price_s: Column  # [loads] of the better way
    ways: tuple[Way, ...]
    evicted_s: Column | None  # [loads] to compute once more what goes, as far as it is missed
    weight: Column  # [loads] lambda, of a second that it computes
    backlog: float  # lambda, as far as it is the same for all
    is_fetched: NDArray[np.bool_] | None = None  # [loads] whether that is the better way
    holder: int = 0  # from whom
    longest_s: float = np.inf  # beyond which nobody waits for his turn, siblings left aside
    scores: Mapping[int, float] = _NO_SCORES  # by index, of a rule that prices in no seconds

    def fetches(self, index: int) -> bool:
        return self.is_fetched is not None and bool(self.is_fetched[index])

    def way(self, index: int) -> Way:
        """The better one of this worker."""
        return self.ways[self.fetches(index)]

    def num_cached(self, index: int, prompt: Prompt) -> int:
        """Tokens that it need not compute, fetched ones included."""
        return int(prompt.ready[self.holder] if self.fetches(index) else prompt.cached[index])

    @property
    def best_prefill_s(self) -> Column:
        """[loads] of the better way."""
        seconds = self.ways[0].prefill_s
        if self.is_fetched is not None:
            seconds = np.where(self.is_fetched, self.ways[1].prefill_s, seconds)
        return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    may_fetch: bool = True
    eviction_weight: float = 0.5

    def __post_init__(self) -> None:
        check_between("the weight of what is evicted", self.eviction_weight, least=0.0, most=100.0)

    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Computing, int]:
        bids = self.bids(prompt, loads)
        index, state = draw_least_of(bids.price_s, state)
        source = bids.holder if bids.fetches(index) else None
        return Computing(index, source, tuple(bids.price_s.tolist())), state

    def bids(
        self,
        prompt: Prompt,
        loads: Loads,
        barred: NDArray[np.bool_] | None = None,
        spare_s: Column | None = None,
        *,
        decoder: int | None = None,
        is_bounded: bool = True,
    ) -> Bids:
        """`spare_s` [those that decode]: so long an answer there may wait in all; None: not at all.
        It counts where a prefill worker could compute the prompt instead.
        `barred` [loads]: who may not compute the prompt, and keeps nobody from waiting.
        `decoder`: to whom prefill workers would hand it over, most likely; None: to nobody.
        `is_bounded`: whether who would wait too long beside an idle worker is left out."""
        columns, num_tokens, cached = loads.columns, float(prompt.num_tokens), prompt.cached
        token_s = columns.c1 + columns.c3 * num_tokens
        whole_s = columns.c0 + (columns.c2 + token_s) * num_tokens
        own_s = whole_s - token_s * cached
        turn_s = columns.wait_s(prompt.now_s, prompt.now_s + prompt.due_s(own_s))
        computing = slice(loads.num_prefill)
        if (barred is not None and barred[computing].all()) or not loads.num_prefill:
            computing, spare_s = slice(loads.num_prefill, None), None
        ahead = least_ahead(turn_s[computing], columns.num_prompts[computing])
        scarcity = min(1.0, ahead)
        backlog = 1.0 + ahead
        weight = backlog + (_FOLLOWING * scarcity) * columns.num_prompts
        evicted_s = self._evicted_s(prompt, columns, token_s, scarcity)
        ground = _Ground(prompt, loads, turn_s, weight, evicted_s, spare_s)
        ways: tuple[Way, ...] = (_way(ground, turn_s, own_s),)
        holder = int(prompt.ready.argmax())
        num_ready = float(prompt.ready[holder])
        if self.may_fetch and num_ready:
            fetch_s = _fetch_s(prompt, columns, holder, num_ready)
            if _may_pay(fetch_s, ways[0], prompt.weight):
                fetched_s = whole_s - token_s * num_ready
                ways = (*ways, _way(ground, np.maximum(turn_s, fetch_s), fetched_s))
        longest_s = _longest_wait_s(ground, ways, barred, decoder) if is_bounded else np.inf
        if longest_s < np.inf:
            _bar_who_waits_longer(ways, longest_s, prompt.num_siblings)
        if len(ways) == 1:
            price_s = ways[0].price_s
            return Bids(price_s, ways, evicted_s, weight, backlog, longest_s=longest_s)
        own_price_s, fetched_price_s = ways[0].price_s, ways[1].price_s
        return Bids(
            np.minimum(own_price_s, fetched_price_s),
            ways,
            evicted_s,
            weight,
            backlog,
            is_fetched=fetched_price_s < own_price_s,
            holder=holder,
            longest_s=longest_s,
        )

    def _evicted_s(
        self, prompt: Prompt, columns: Columns, token_s: Column, scarcity: float
    ) -> Column | None:
        """None: nothing that is missed."""
        missed = self.eviction_weight * scarcity
        if not missed or not np.count_nonzero(columns.tail_reuse):
            return None
        num_evicted = (prompt.num_tokens - prompt.cached) - columns.num_unused_tokens
        evicted_s: Column = np.maximum(num_evicted, 0.0) * token_s * columns.tail_reuse * missed
        return evicted_s


class _Ground(NamedTuple):
    """Holds what the ways of a prompt have in common."""

    prompt: Prompt
    loads: Loads
    turn_s: Column
    weight: Column
    evicted_s: Column | None
    spare_s: Column | None


def _way(ground: _Ground, wait_s: Column, prefill_s: Column) -> Way:
    prompt, num_prefill = ground.prompt, ground.loads.num_prefill
    first_s, late_s, own_s = wait_s + prefill_s, None, wait_s
    if first_s[first_s.argmax()] > prompt.late_after_s:
        late_s = np.minimum(np.maximum(first_s - prompt.late_after_s, 0.0), prompt.most_late_s)
        own_s = wait_s + late_s
    delay_s = _delay_s(ground, prefill_s[num_prefill:])
    work_s = prefill_s if ground.evicted_s is None else prefill_s + ground.evicted_s
    price_s = times(prompt.weight, own_s) + ground.weight * work_s
    decoding_s = price_s[num_prefill:]
    decoding_s += delay_s
    return Way(wait_s, prefill_s, first_s, late_s, delay_s, price_s)


def _may_pay(fetch_s: Column, own: Way, weight: float) -> bool:
    """Tells whether a fetch can be of use anywhere: it is of none where it alone costs more than to
    compute the prompt from what is held, and the first token comes no sooner."""
    most_s = np.maximum(own.price_s, times(weight, own.first_s))
    return bool(np.count_nonzero(most_s > times(weight, fetch_s)))


def _delay_s(ground: _Ground, prefill_s: Column) -> Column:
    """[those that decode]: the seconds of this prompt as far as answers cannot spare them, taken in
    the middle of it; and what it costs that some become late by it, who were not before."""
    num_prefill, spare_s = ground.loads.num_prefill, ground.spare_s
    num_delayed = ground.loads.columns.num_delayed[num_prefill:]
    if spare_s is None:
        whole_s: Column = num_delayed * prefill_s
        return whole_s
    turn_s = ground.turn_s[num_prefill:]
    late_answer_s: Column | np.float64 = np.float64(_LATE_ANSWER * ground.prompt.most_late_s)
    if spare_s[spare_s.argmin()] < _LEAST_S:
        late_answer_s = late_answer_s * (spare_s > 0.0)
        spare_s = np.maximum(spare_s, _LEAST_S)
    share = np.minimum((turn_s + 0.5 * prefill_s) / spare_s, 1.0)
    late = np.minimum((turn_s + prefill_s) / spare_s, 1.0) - np.minimum(turn_s / spare_s, 1.0)
    delay_s: Column = num_delayed * (prefill_s * share + late_answer_s * late)
    return delay_s


def _longest_wait_s(
    ground: _Ground,
    ways: tuple[Way, ...],
    barred: NDArray[np.bool_] | None,
    decoder: int | None,
) -> float:
    """Says how long an idle worker takes until it has handed the prompt over: nobody waits longer
    for his turn. Whose cache is held by others cannot begin, and is not idle."""
    prompt, columns = ground.prompt, ground.loads.columns
    is_idle = (ground.turn_s <= 0.0) & (columns.num_delayed <= 1.0)
    is_idle &= float(prompt.num_tokens) - prompt.cached <= columns.num_free_tokens
    if barred is not None:
        is_idle &= ~barred
    idle = is_idle.nonzero()[0]
    if not len(idle):
        return np.inf
    num_prefill = ground.loads.num_prefill
    longest_s = np.inf
    for way in ways:
        handed_s = way.first_s
        if decoder is not None and num_prefill:
            handed_s = handed_s.copy()
            computing_s = handed_s[:num_prefill]
            computing_s += _handed_s(prompt, columns, decoder, way.prefill_s[:num_prefill])
        of_idle = handed_s[idle]
        longest_s = min(longest_s, float(of_idle[of_idle.argmin()]))
    return longest_s


def _handed_s(prompt: Prompt, columns: Columns, decoder: int, prefill_s: Column) -> Column:
    """[prefill workers]: from the first token until the KV is there."""
    num_bytes = (prompt.num_tokens - prompt.ready[decoder]) * columns.token_bytes[decoder]
    costs, num_prefill = prompt.costs, len(prefill_s)
    setup_s, s_per_byte = costs.setup_s[decoder], costs.s_per_byte[decoder]
    return hand_over_s(setup_s[:num_prefill], s_per_byte[:num_prefill], num_bytes, prefill_s)


def _bar_who_waits_longer(
    ways: tuple[Way, ...], longest_s: float, num_siblings: Column | None
) -> None:
    """Bars in their prices who waits longer. Who waits behind siblings waits as long as they; of
    the wait that is what they compute themselves, not the copy that all of them share."""
    for way in ways:
        wait_s = way.wait_s
        if num_siblings is not None:
            theirs_s = np.minimum(wait_s, num_siblings * way.prefill_s)
            wait_s = wait_s + np.sqrt(num_siblings) * theirs_s
        np.add(way.price_s, CANNOT, out=way.price_s, where=wait_s > longest_s)


def _fetch_s(prompt: Prompt, columns: Columns, holder: int, num_ready: float) -> Column:
    """Dear where nothing is to fetch."""
    missing, costs = num_ready - prompt.cached, prompt.costs
    s_per_token = costs.s_per_byte[:, holder] * columns.token_bytes
    fetch_s: Column = s_per_token * missing + costs.setup_s[:, holder]
    np.copyto(fetch_s, CANNOT, where=missing <= 0.0)
    return fetch_s


def least_ahead(turn_s: Column, num_prompts: Column) -> float:
    """The least wait at any worker that computes prompts, in prompts of the mean length that waits
    there; 0 while somebody is idle. Arrays [those workers]."""
    least_s = float(turn_s[turn_s.argmin()])
    return least_s * float(num_prompts.sum()) / float(turn_s.sum()) if least_s > 0.0 else 0.0
