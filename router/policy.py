"""Placement: `(request, frozen snapshot, state) -> (decision, state)`. Pure; no clock, no I/O.

The least price in seconds wins, over every pair of a decode worker and one that computes the
prompt (itself, or a prefill worker): what this request waits, what it makes others wait, and
the GPU seconds it adds, weighted by the load. A named rule other than the default chooses who
computes the prompt; the decode worker goes by its price then, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.types import Placement, WorkerId
from router.load import Column, Loads
from router.pair_costs import CANNOT, Matrix
from router.policies.priced import (
    Bids,
    Priced,
    Reuse,
    backlog_of,
    draw_least_of,
)
from router.policies.rule import Prompt, Rule
from router.policy_settings import (
    DEFAULT_CLASS,
    Admission,
    Order,
    QueueOrder,
    ServiceClass,
    SessionAffinity,
    TenantShare,
)
from router.pool import PoolSnapshot
from router.price import Answer, DecodeTerms, HandOver, decode_terms

_FEW_PAIRS = 4096  # to find those that can win takes longer than to price as few as these
DEFAULT_OUTPUT_TOKENS = 128.0  # of an answer, until something has been observed


class Disaggregate(StrEnum):
    AUTO = "auto"
    ALWAYS = "always"  # wherever a prefill worker serves
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What an operator decides; the rest is measured."""

    name: str = "default"
    classes: tuple[ServiceClass, ...] = (DEFAULT_CLASS,)  # the first: of requests that name none
    tenants: tuple[TenantShare, ...] = ()
    rule: Rule[Any] = field(default_factory=Priced)
    disaggregate: Disaggregate = Disaggregate.AUTO
    queue: QueueOrder = field(default_factory=QueueOrder)
    admission: Admission = field(default_factory=Admission)
    sessions: SessionAffinity | None = field(default_factory=SessionAffinity)
    speculates: bool = True  # what was placed counts as cached, before it is computed

    def service_class(self, name: str) -> ServiceClass | None:
        """None: there is no such class."""
        if not name:
            return self.classes[0]
        return next((each for each in self.classes if each.name == name), None)

    def begin(self, seed: int) -> "PolicyState":
        return PolicyState(rule=self.rule.begin(seed), random=seed)


class PolicyState(NamedTuple):
    """What a policy remembers from request to request."""

    rule: Any
    random: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRequest:
    """A request as the policy sees it: sizes, its class, and what each worker holds of it."""

    num_prompt_tokens: int
    max_tokens: int
    num_choices: int = 1
    num_output_tokens: float = DEFAULT_OUTPUT_TOKENS  # predicted, a choice
    service_class: ServiceClass = DEFAULT_CLASS
    age_s: float = 0.0  # since it arrived
    grain_tokens: int = 16
    num_ready: Mapping[WorkerId, int] = field(default_factory=dict)  # leading grains computed
    # With what was placed there and will be computed by the prompt's turn, where that is more.
    num_expected: Mapping[WorkerId, int] = field(default_factory=dict)
    excluded: frozenset[WorkerId] = frozenset()
    session_worker: WorkerId | None = None  # who decoded for its session last
    tenant_excess: float = 1.0  # how many times its share its tenant used, while workers are short

    def num_held(self, worker: WorkerId) -> int:
        """Leading grains that it has by the prompt's turn without computing or fetching them."""
        return self.num_expected.get(worker) or self.num_ready.get(worker, 0)

    @property
    def target_s(self) -> float:
        """From now, to the first token; later for who used more than its share."""
        return self.service_class.ttft_s * self.tenant_excess - self.age_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The placement, and what is predicted of it."""

    placement: Placement
    price_s: float
    num_cached_tokens: int  # where the prompt is computed, fetched ones included
    num_prefill_tokens: int
    wait_s: float  # until the prompt's turn
    prefill_s: float
    itl_s: float
    prefill_error: float  # actual / predicted, at the ninetieth percentile
    due_s: float  # from now; orders the worker's queue

    @property
    def ttft_s(self) -> float:
        """From now."""
        return self.wait_s + self.prefill_s


class Quotes(NamedTuple):
    """The candidates of one decision, priced; those that cannot be the cheapest left out.

    Candidate i < len(rows) * len(columns) is of decode worker rows[i // len(columns)] and
    prefill worker columns[i % len(columns)]; those after are of each decode worker alone.
    """

    price_s: Column
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    hand_over_s: Matrix  # [rows, columns]
    prompt: Prompt
    bids: Bids
    decode: DecodeTerms
    rule: Any  # its state afterwards

    def candidate(self, position: int) -> tuple[int, int | None]:
        """Its decode worker, and its prefill worker if it has one."""
        num_remote = len(self.rows) * len(self.columns)
        if position >= num_remote:
            return position - num_remote, None
        row, column = divmod(position, len(self.columns))
        return int(self.rows[row]), int(self.columns[column])


def place(
    request: PlacementRequest, snapshot: PoolSnapshot, state: PolicyState, policy: Policy
) -> tuple[Decision | None, PolicyState]:
    """Chooses the cheapest candidate; None when no decode worker is left to choose from."""
    if all(load.worker in request.excluded for load in snapshot.decode):
        return None, state
    quotes = quote(request, snapshot, state, policy)
    position, random = draw_least_of(quotes.price_s, state.random)
    decision = _decision(request, snapshot.loads, quotes, position)
    rule = quotes.rule
    if isinstance(rule, Reuse):
        rule = rule.after(decision.num_cached_tokens, request.num_prompt_tokens, rule.random)
    return decision, PolicyState(rule, random)


def quote(
    request: PlacementRequest,
    snapshot: PoolSnapshot,
    state: PolicyState,
    policy: Policy,
    *,
    all_of_them: bool = False,
) -> Quotes:
    """Prices the candidates that can win, or all. There is a decode worker."""
    loads, num_prefill = snapshot.loads, snapshot.loads.num_prefill
    prompt = _prompt(request, snapshot, policy.queue)
    barred = _barred(request, loads, policy.disaggregate)
    bids, rule = _bids(prompt, loads, barred, state.rule, policy.rule)
    compute_s = bids.price_s if barred is None else bids.price_s + CANNOT * barred
    answer = _answer(request)
    held = prompt.ready[num_prefill:]
    decode = decode_terms(answer, loads.columns, held, num_prefill, backlog_of(loads))
    decode_s = decode.price_s
    if request.excluded or request.session_worker:
        decode_s = decode_s + _favour(request, loads, policy.sessions)
    local_s = decode_s + compute_s[num_prefill:]
    move = HandOver(answer, loads.columns, held, bids.prefill_s, snapshot.costs, num_prefill)
    if all_of_them or len(local_s) * num_prefill <= _FEW_PAIRS:
        rows, columns = np.arange(len(local_s)), np.arange(num_prefill)
        moved_s = move.seconds()
        remote_s = decode_s[:, None] + answer.weight * moved_s + compute_s[:num_prefill]
    else:
        rows, columns = _contenders(decode_s, compute_s[:num_prefill], local_s, answer, move)
        moved_s = move.seconds_of(rows, columns)
        remote_s = decode_s[rows, None] + answer.weight * moved_s + compute_s[columns]
    price_s = np.concatenate((remote_s.ravel(), local_s))
    return Quotes(price_s, rows, columns, moved_s, prompt, bids, decode, rule)


def _contenders(
    decode_s: Column, compute_s: Column, local_s: Column, answer: Answer, move: HandOver
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns that can hold the least price: with the least hand-over there is they must
    not be above what a good candidate costs with its own."""
    best_s = decode_s + answer.weight * move.least_s()
    row, column = int(best_s.argmin()), int(compute_s.argmin())
    moved_s = move.seconds_of(np.array([row]), np.array([column]))[0, 0]
    good_s = decode_s[row] + answer.weight * moved_s + compute_s[column]
    good_s = min(good_s, local_s.min())
    good_s += 1e-6 * abs(good_s)  # ties are drawn among all
    rows = np.flatnonzero(best_s <= good_s - compute_s[column])
    columns = np.flatnonzero(compute_s <= good_s - best_s[row])
    return rows, columns


def _answer(request: PlacementRequest) -> Answer:
    return Answer(
        num_prompt_tokens=request.num_prompt_tokens,
        num_choices=request.num_choices,
        num_steps=min(request.max_tokens, request.num_output_tokens),
        itl_s=request.service_class.itl_s,
        weight=request.service_class.weight,
    )


def _prompt(request: PlacementRequest, snapshot: PoolSnapshot, queue: QueueOrder) -> Prompt:
    ready = cached = _held(request, request.num_ready, snapshot.loads)
    if request.num_expected:
        cached = np.maximum(ready, _held(request, request.num_expected, snapshot.loads))
    is_fifo = queue.order is Order.FIFO
    return Prompt(
        num_tokens=request.num_prompt_tokens,
        cached=cached,
        ready=ready,
        costs=snapshot.costs,
        now_s=snapshot.now,
        slack_s=0.0 if is_fifo else request.target_s,
        stretch=0.0 if is_fifo else queue.stretch,
        weight=request.service_class.weight,
        block_tokens=request.grain_tokens,
    )


def _held(request: PlacementRequest, grains: Mapping[WorkerId, int], loads: Loads) -> Column:
    """Tokens [loads]. The last prompt token is always computed, to be sampled from."""
    held = np.zeros(len(loads) + 1)  # the last: of workers that do not serve
    if grains:
        position = loads.positions.get
        held[[position(worker, -1) for worker in grains]] = list(grains.values())
        held *= request.grain_tokens
        np.minimum(held, request.num_prompt_tokens - 1, out=held)
    return held[:-1]


def _barred(
    request: PlacementRequest, loads: Loads, disaggregate: Disaggregate
) -> NDArray[np.bool_] | None:
    """Who may not compute the prompt [loads]; None: everybody may."""
    num_prefill = loads.num_prefill
    is_small = loads.columns.num_total_tokens[:num_prefill] < request.num_prompt_tokens
    is_plain = disaggregate is Disaggregate.AUTO and not request.excluded
    if is_plain and not is_small.any():
        return None
    barred = np.array([load.worker in request.excluded for load in loads])
    barred[:num_prefill] |= is_small | (disaggregate is Disaggregate.NEVER)
    if disaggregate is Disaggregate.ALWAYS and not barred[:num_prefill].all():
        barred[num_prefill:] = True
    return barred


def _bids(
    prompt: Prompt, loads: Loads, barred: NDArray[np.bool_] | None, state: Any, rule: Rule[Any]
) -> tuple[Bids, Any]:
    if isinstance(rule, Priced):
        return rule.bids(prompt, loads, state), state
    return _chosen_by(rule, prompt, loads, barred, state)


def _chosen_by(
    rule: Rule[Any], prompt: Prompt, loads: Loads, barred: NDArray[np.bool_] | None, state: Any
) -> tuple[Bids, Any]:
    """A rule that does not price: whom it chooses among the prefill workers, or where there are
    none among the decode workers, is the only one to be had."""
    allowed = np.flatnonzero(~barred) if barred is not None else np.arange(len(loads))
    kept = allowed[allowed < loads.num_prefill]
    kept = kept if len(kept) else allowed
    of_kept = Prompt(
        num_tokens=prompt.num_tokens,
        cached=prompt.cached[kept],
        ready=prompt.ready[kept],
        costs=prompt.costs.among(kept),
        now_s=prompt.now_s,
        slack_s=prompt.slack_s,
        stretch=prompt.stretch,
        weight=prompt.weight,
        block_tokens=prompt.block_tokens,
    )
    choice, state = rule.choose(of_kept, Loads([loads[i] for i in kept]), state)
    # The longest holder is the source of every rule that has one.
    bids = Priced(may_fetch=choice.source is not None).bids(prompt, loads, Reuse(0))
    is_chosen = np.arange(len(loads)) == kept[choice.index]
    price_s = np.where(is_chosen, 0.0, CANNOT)
    is_fetched = is_chosen if bids.fetched is not None else None
    scores = dict(zip(kept.tolist(), choice.scores, strict=False))
    return bids._replace(price_s=price_s, is_fetched=is_fetched, scores=scores), state


def _favour(request: PlacementRequest, loads: Loads, sessions: SessionAffinity | None) -> Column:
    """Seconds [decode workers] that bar those that failed, and make the session's cheaper."""
    positions, num_prefill = loads.positions, loads.num_prefill
    favour_s = np.zeros(len(loads))
    for worker in request.excluded & positions.keys():
        favour_s[positions[worker]] = CANNOT
    if sessions is not None and request.session_worker in positions:
        favour_s[positions[request.session_worker]] -= sessions.max_penalty_s
    return favour_s[num_prefill:]


def _decision(request: PlacementRequest, loads: Loads, quotes: Quotes, position: int) -> Decision:
    bids, num_prefill = quotes.bids, loads.num_prefill
    row, column = quotes.candidate(position)
    index = num_prefill + row if column is None else column
    way, fetches = bids.way(index), bids.fetches(index)
    num_cached, prefill_s = bids.num_cached(index, quotes.prompt), float(way.prefill_s[index])
    slot_s = quotes.decode.slot_s[row] if column is None else 0.0
    return Decision(
        placement=Placement(
            decode=loads[num_prefill + row].worker,
            prefill=None if column is None else loads[column].worker,
            source=loads[bids.holder].worker if fetches else None,
            num_source_tokens=num_cached if fetches else 0,
        ),
        price_s=float(quotes.price_s[position]),
        num_cached_tokens=num_cached,
        num_prefill_tokens=request.num_prompt_tokens - num_cached,
        wait_s=float(way.wait_s[index] + slot_s),
        prefill_s=prefill_s,
        itl_s=float(quotes.decode.step_s[row]),
        prefill_error=loads[index].prefill_error,
        due_s=quotes.prompt.due_s(prefill_s),
    )
