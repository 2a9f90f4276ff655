"""Explains why a request went where it went: every candidate of a decision with every term of its
price, recomputed by the policy's own code from what the decision rested on. Pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cluster.types import Placement, WorkerId
from router.decision import Attempt, Quotes, num_needed, place, quote
from router.pair_costs import CANNOT
from router.policies.priced import Priced
from router.policies.registry import name_of
from router.policies.rule import draw_least_of
from router.policy import Disaggregate, PolicyState
from router.price import term_at

_FINITE_S = CANNOT / 2  # whoever costs more is left out
_TIE = 1e-9  # relative, as for the policy


class Term(NamedTuple):
    """A part of a price. Those of a candidate sum up to it."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    placement: Placement
    num_cached_tokens: int
    price_s: float
    terms: tuple[Term, ...]
    is_chosen: bool = False


class LeftOut(NamedTuple):
    worker: WorkerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    candidates: tuple[Candidate, ...]  # the chosen one first, then by price
    num_candidates: int  # of which these are the cheapest
    left_out: tuple[LeftOut, ...]
    num_tied: int  # at the least price; one of them was drawn
    sentence: str

    @property
    def chosen(self) -> Candidate | None:
        return self.candidates[0] if self.candidates else None

    @property
    def runner_up(self) -> Candidate | None:
        return self.candidates[1] if len(self.candidates) > 1 else None

    @property
    def margin_s(self) -> float:
        """Says how much dearer the runner-up is; 0.0 where there is none."""
        if self.chosen is None or self.runner_up is None:
            return 0.0
        return self.runner_up.price_s - self.chosen.price_s


class Hindsight(NamedTuple):
    """Says what would have been best, had all been known that was known afterwards."""

    regret_s: float  # how much dearer the chosen one was
    best: Candidate


def explain(attempt: Attempt, *, most: int = 50) -> Explanation:
    """`most` candidates at most, 1 or more. Agrees with what `place` chose."""
    decision, _ = place(*attempt[:4])
    if decision is None:
        return Explanation(
            candidates=(),
            num_candidates=0,
            left_out=tuple(_left_out(attempt, None)),
            num_tied=0,
            sentence="Nobody could be chosen: no decode worker was left.",
        )
    quotes = _quotes(attempt)
    chosen, _ = draw_least_of(quotes.price_s, attempt.state.random)
    others = [position for position in _cheapest(quotes, most) if position != chosen]
    positions = [chosen, *others[: most - 1]]
    candidates = tuple(_candidate(attempt, quotes, each) for each in positions)
    candidates = (replace(candidates[0], is_chosen=True), *candidates[1:])
    least_s = quotes.price_s.min()
    return Explanation(
        candidates=candidates,
        num_candidates=int((quotes.price_s < _FINITE_S).sum()),
        left_out=tuple(_left_out(attempt, quotes)),
        num_tied=int((quotes.price_s <= least_s + _TIE * abs(least_s)).sum()),
        sentence=_sentence(attempt, candidates),
    )


def price_of(attempt: Attempt, placement: Placement) -> float:
    """Seconds; by the default price where the policy's rule has none, and as if the policy left
    it to the price whether to disaggregate."""
    priced = _priced(attempt)
    policy = replace(priced.policy, disaggregate=Disaggregate.AUTO)
    quotes = _quotes(priced._replace(policy=policy), is_bounded=False)
    return float(quotes.price_s[_position(attempt, quotes, placement)])


def look_back(attempt: Attempt, *, num_cached: int, num_tokens: int) -> Hindsight | None:
    """`num_cached`: prompt tokens that were found cached; `num_tokens` of one answer. None where
    nothing was decided."""
    decision = attempt.decision
    if decision is None:
        return None
    known = _priced(_as_found(attempt, decision.placement, num_cached, num_tokens))
    quotes = _quotes(known, is_bounded=False)
    chosen, best = _position(attempt, quotes, decision.placement), int(quotes.price_s.argmin())
    regret_s = float(quotes.price_s[chosen] - quotes.price_s[best])
    if regret_s <= _TIE * abs(quotes.price_s[best]):
        regret_s, best = 0.0, chosen
    return Hindsight(regret_s, _candidate(known, quotes, best))


def _as_found(attempt: Attempt, placement: Placement, num_cached: int, num_tokens: int) -> Attempt:
    request = attempt.request._replace(num_output_tokens=float(max(1, num_tokens)))
    if placement.source is None:
        loads, computing = attempt.snapshot.loads, placement.computing
        found = num_cached // request.grain_tokens
        ready = min(found, request.num_ready_at(loads.positions[computing]))
        held = request.num_ready if request.num_held is None else request.num_held
        request = request._replace(
            num_ready=loads.column_of({computing: ready}, request.num_ready),
            num_held=loads.column_of({computing: found}, held),
        )
    return attempt._replace(request=request)


def _priced(attempt: Attempt) -> Attempt:
    """Gives it a rule that prices: others know no price of whom they did not choose."""
    if isinstance(attempt.policy.rule, Priced):
        return attempt
    policy = replace(attempt.policy, rule=Priced())
    return attempt._replace(policy=policy, state=PolicyState(0, attempt.state.random))


def _quotes(attempt: Attempt, *, is_bounded: bool = True) -> Quotes:
    request, snapshot, state, policy, _ = attempt
    return quote(request, snapshot, state, policy, all_of_them=True, is_bounded=is_bounded)


def _position(attempt: Attempt, quotes: Quotes, placement: Placement) -> int:
    loads = attempt.snapshot.loads
    row = loads.positions[placement.decode] - loads.num_prefill
    if placement.prefill is None:
        return len(quotes.rows) * len(quotes.columns) + row
    return row * len(quotes.columns) + loads.positions[placement.prefill]


def _cheapest(quotes: Quotes, most: int) -> list[int]:
    """Positions by price, one more than asked for."""
    num = min(most + 1, len(quotes.price_s))
    least = np.argpartition(quotes.price_s, num - 1)[:num]
    least = least[np.argsort(quotes.price_s[least], kind="stable")]
    return [int(each) for each in least if quotes.price_s[each] < _FINITE_S]


def _candidate(attempt: Attempt, quotes: Quotes, position: int) -> Candidate:
    loads, bids = attempt.snapshot.loads, quotes.bids
    row, column = quotes.candidate(position)
    index = loads.num_prefill + row if column is None else column
    fetches, num_cached = bids.fetches(index), bids.num_cached(index, quotes.prompt)
    placement = Placement(
        decode=loads[loads.num_prefill + row].worker,
        prefill=None if column is None else loads[column].worker,
        source=loads[bids.holder].worker if fetches else None,
        num_source_tokens=num_cached if fetches else 0,
    )
    return Candidate(
        placement=placement,
        num_cached_tokens=num_cached,
        price_s=float(quotes.price_s[position]),
        terms=tuple(_terms(attempt, quotes, row, column)),
    )


def _terms(attempt: Attempt, quotes: Quotes, row: int, column: int | None) -> Iterator[Term]:
    request, loads, bids = attempt.request, attempt.snapshot.loads, quotes.bids
    weight, decode = request.service_class.weight, quotes.decode
    index = loads.num_prefill + row if column is None else column
    if isinstance(attempt.policy.rule, Priced):
        way, work = bids.way(index), float(bids.weight[index])
        yield Term("wait", weight * float(way.wait_s[index]))
        yield Term("overdue", weight * term_at(way.late_s, index))
        yield Term("prefill", work * float(way.prefill_s[index]))
        yield Term("eviction", work * term_at(bids.evicted_s, index))
        if column is None:
            yield Term("delay", float(way.delay_s[row]))
    if column is not None:
        at = int(np.searchsorted(quotes.rows, row)), int(np.searchsorted(quotes.columns, column))
        yield Term("hand-over", weight * float(quotes.hand_over_s[at]))
    yield Term("room", weight * term_at(decode.slot_s, row))
    yield Term("decode", weight * float(decode.decode_s[row]))
    yield Term("late", weight * term_at(decode.late_s, row))
    yield Term("slowdown", float(decode.slowdown_s[row]))
    yield Term("work", bids.backlog * float(decode.added_s[row]))
    sessions = attempt.policy.sessions
    if sessions and loads[loads.num_prefill + row].worker == request.session_worker:
        yield Term("session", -sessions.max_penalty_s)


def _left_out(attempt: Attempt, quotes: Quotes | None) -> Iterator[LeftOut]:
    """Lists who could not compute the prompt, or not decode, and why."""
    request, loads = attempt.request, attempt.snapshot.loads
    for refusal in attempt.snapshot.refused:
        yield LeftOut(refusal.worker, refusal.reason)
    for position, load in enumerate(loads):
        if load.worker in request.excluded:
            yield LeftOut(load.worker, "failed this request before")
        elif quotes and not _takes_part(quotes, loads.num_prefill, position):
            reason = _bar(attempt, position) or _not_chosen(attempt, quotes, position)
            yield LeftOut(load.worker, reason)
        elif quotes and _only_decodes(attempt, quotes, position):
            reason = f"decodes, but does not compute: {_not_chosen(attempt, quotes, position)}"
            yield LeftOut(load.worker, reason)


def _takes_part(quotes: Quotes, num_prefill: int, position: int) -> bool:
    """Tells whether any candidate has this worker."""
    num_remote = len(quotes.rows) * len(quotes.columns)
    remote_s = quotes.price_s[:num_remote].reshape(len(quotes.rows), len(quotes.columns))
    if position < num_prefill:
        return bool((remote_s[:, position] < _FINITE_S).any())
    row = position - num_prefill
    is_local = quotes.price_s[num_remote + row] < _FINITE_S
    return bool(is_local or (remote_s[row] < _FINITE_S).any())


def _only_decodes(attempt: Attempt, quotes: Quotes, position: int) -> bool:
    """Tells whether a worker that takes part would compute the prompt too late, and not for the
    policy's sake computes none."""
    policy = attempt.policy
    if policy.disaggregate is not Disaggregate.AUTO or not isinstance(policy.rule, Priced):
        return False
    return bool(quotes.bids.price_s[position] >= _FINITE_S)


def _not_chosen(attempt: Attempt, quotes: Quotes, position: int) -> str:
    bids = quotes.bids
    if isinstance(attempt.policy.rule, Priced):
        turn_s = float(bids.ways[0].wait_s[position])
        shared = "" if turn_s > bids.longest_s else ", for all that wait behind the same prefix"
        return (
            f"its turn comes in {_ms(turn_s)}; an idle worker needs {_ms(bids.longest_s)}{shared}"
        )
    name, score = name_of(attempt.policy.rule), bids.scores.get(position)
    return f"not chosen by '{name}'" + ("" if score is None else f", which gives it {score:.4g}")


def _bar(attempt: Attempt, position: int) -> str | None:
    """Says why this worker can never take the prompt."""
    request, loads = attempt.request, attempt.snapshot.loads
    is_prefill, num_tokens = position < loads.num_prefill, loads[position].num_total_tokens
    if num_tokens < num_needed(request, loads)[position]:
        answer = "" if is_prefill else " and its answer"
        return f"its cache of {num_tokens:.0f} tokens is too small for the prompt{answer}"
    if is_prefill and attempt.policy.disaggregate is Disaggregate.NEVER:
        return "the policy disaggregates never"
    apart = attempt.snapshot.costs.apart
    if is_prefill and apart is not None and apart[loads.num_prefill :, position].all():
        return "it speaks another wire version than any decode worker"
    return None


def _sentence(attempt: Attempt, candidates: tuple[Candidate, ...]) -> str:
    chosen = candidates[0]
    said = f"{described(chosen.placement)} costs {_ms(chosen.price_s)}"
    if len(candidates) == 1:
        return f"{said}; nobody else could be chosen."
    other = candidates[1]
    margin_s = other.price_s - chosen.price_s
    against = f"{said}, {_ms(margin_s)} less than {described(other.placement)}"
    if margin_s <= _TIE * abs(chosen.price_s):
        return f"{said}, as much as {described(other.placement)}: it was drawn."
    ours, theirs = dict(chosen.terms), dict(other.terms)
    gaps = {name: theirs.get(name, 0.0) - ours.get(name, 0.0) for name in (*theirs, *ours)}
    most = max(gaps, key=lambda name: gaps[name])
    return f"{against}: {_ms(gaps[most])} of it by '{most}'."


def described(placement: Placement) -> str:
    prefill = f"'{placement.prefill}' computes" if placement.prefill else "it computes"
    source = f" after a fetch from '{placement.source}'" if placement.source else ""
    return f"'{placement.decode}' ({prefill}{source})"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f} ms" if abs(seconds) >= 0.1 else f"{1e3 * seconds:.3g} ms"
