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
from router.load import Loads
from router.pair_costs import CANNOT
from router.policies.priced import (
    Bids,
    Priced,
    Reuse,
    backlog_of,
    draw_least_of,
    fetched,
    merged,
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
from router.price import Answer, DecodeTerms, decode_terms, hand_over_s

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
    num_ready: Mapping[WorkerId, int] = field(default_factory=dict)  # prompt tokens computed there
    # Those, and what was placed there and will be computed by the prompt's turn.
    num_expected: Mapping[WorkerId, int] = field(default_factory=dict)
    block_tokens: int = 16  # what rules that count in blocks count in
    excluded: frozenset[WorkerId] = frozenset()
    session_worker: WorkerId | None = None  # who decoded for its session last


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
    """All candidates of one decision, priced."""

    prompt: Prompt
    bids: Bids
    decode: DecodeTerms
    hand_over_s: NDArray[np.float64]  # [decode workers, prefill workers]
    price_s: NDArray[np.float64]  # [decode workers, prefill workers + 1]; the last: itself
    rule: Any  # its state afterwards


def place(
    request: PlacementRequest, snapshot: PoolSnapshot, state: PolicyState, policy: Policy
) -> tuple[Decision | None, PolicyState]:
    """Chooses the cheapest candidate; None when no decode worker is left to choose from."""
    if all(load.worker in request.excluded for load in snapshot.decode):
        return None, state
    quotes = quote(request, snapshot, state, policy)
    flat, random = draw_least_of(quotes.price_s.ravel(), state.random)
    row, column = divmod(flat, quotes.price_s.shape[1])
    decision = _decision(request, snapshot.loads, quotes, policy.queue, row, column)
    rule = quotes.rule
    if isinstance(rule, Reuse):
        rule = rule.after(decision.num_cached_tokens, request.num_prompt_tokens, rule.random)
    return decision, PolicyState(rule, random)


def quote(
    request: PlacementRequest, snapshot: PoolSnapshot, state: PolicyState, policy: Policy
) -> Quotes:
    """Prices every candidate. There is a decode worker."""
    loads, num_prefill = snapshot.loads, snapshot.loads.num_prefill
    columns, service = loads.columns, request.service_class
    prompt = _prompt(request, snapshot, policy.queue)
    barred = _barred(request, loads, policy.disaggregate)
    bids, rule = _bids(prompt, loads, barred, state.rule, policy.rule)
    answer = Answer(
        num_prompt_tokens=request.num_prompt_tokens,
        num_choices=request.num_choices,
        num_steps=min(request.max_tokens, request.num_output_tokens),
        itl_s=service.itl_s,
        weight=service.weight,
    )
    held = np.array(prompt.ready[num_prefill:], dtype=np.float64)
    decode = decode_terms(answer, columns, held, num_prefill, backlog_of(loads))
    moved_s = hand_over_s(answer, columns, held, bids.prefill_s, snapshot.costs, num_prefill)
    compute_s = bids.price_s if barred is None else bids.price_s + CANNOT * barred
    price_s = np.empty((len(held), num_prefill + 1))
    price_s[:, :num_prefill] = service.weight * moved_s + compute_s[:num_prefill]
    price_s[:, num_prefill] = compute_s[num_prefill:]
    price_s += decode.price_s[:, None]
    if request.excluded or request.session_worker:
        _favour(request, loads, policy.sessions, price_s)
    return Quotes(prompt, bids, decode, moved_s, price_s, rule)


def _prompt(request: PlacementRequest, snapshot: PoolSnapshot, queue: QueueOrder) -> Prompt:
    positions = snapshot.loads.positions
    # The last prompt token is always computed, to be sampled from.
    reusable = request.num_prompt_tokens - 1
    ready = [0] * len(positions)
    for worker, num_tokens in request.num_ready.items():
        if (position := positions.get(worker)) is not None:
            ready[position] = min(num_tokens, reusable)
    cached = ready
    if request.num_expected:
        cached = ready.copy()
        for worker, num_tokens in request.num_expected.items():
            if (position := positions.get(worker)) is not None:
                cached[position] = max(ready[position], min(num_tokens, reusable))
    is_fifo = queue.order is Order.FIFO
    return Prompt(
        num_tokens=request.num_prompt_tokens,
        cached=cached,
        ready=ready,
        costs=snapshot.costs,
        now_s=snapshot.now,
        slack_s=0.0 if is_fifo else request.service_class.ttft_s - request.age_s,
        stretch=0.0 if is_fifo else queue.stretch,
        weight=request.service_class.weight,
        block_tokens=request.block_tokens,
    )


def _barred(
    request: PlacementRequest, loads: Loads, disaggregate: Disaggregate
) -> NDArray[np.bool_] | None:
    """Who may not compute the prompt [loads]; None: everybody may."""
    num_prefill, total = loads.num_prefill, loads.columns.num_total_tokens
    is_small = (total[:num_prefill] < request.num_prompt_tokens) & (total[:num_prefill] > 0)
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
        cached=[prompt.cached[i] for i in kept],
        ready=[prompt.ready[i] for i in kept],
        costs=prompt.costs.among(kept),
        now_s=prompt.now_s,
        slack_s=prompt.slack_s,
        stretch=prompt.stretch,
        weight=prompt.weight,
        block_tokens=prompt.block_tokens,
    )
    choice, state = rule.choose(of_kept, Loads([loads[i] for i in kept]), state)
    bids = Priced(may_fetch=False).bids(prompt, loads, Reuse(0))
    is_chosen = np.arange(len(loads)) == kept[choice.index]
    if choice.source is not None:
        other = fetched(prompt, loads.columns, bids, int(kept[choice.source]))
        bids = merged(bids, other, is_chosen)
    return bids._replace(price_s=np.where(is_chosen, 0.0, CANNOT)), state


def _favour(
    request: PlacementRequest,
    loads: Loads,
    sessions: SessionAffinity | None,
    price_s: NDArray[np.float64],
) -> None:
    """Bars decode workers that failed; makes that of the session cheaper."""
    for row, load in enumerate(loads[loads.num_prefill :]):
        if load.worker in request.excluded:
            price_s[row] += CANNOT
        elif load.worker == request.session_worker and sessions is not None:
            price_s[row] -= sessions.max_penalty_s


def _decision(
    request: PlacementRequest,
    loads: Loads,
    quotes: Quotes,
    queue: QueueOrder,
    row: int,
    column: int,
) -> Decision:
    bids, num_prefill = quotes.bids, loads.num_prefill
    is_local = column == num_prefill
    index = num_prefill + row if is_local else column
    is_fetched = bool(bids.is_fetched[index])
    num_cached, prefill_s = int(bids.num_cached[index]), float(bids.prefill_s[index])
    return Decision(
        placement=Placement(
            decode=loads[num_prefill + row].worker,
            prefill=None if is_local else loads[column].worker,
            source=loads[bids.holder].worker if is_fetched else None,
            num_source_tokens=num_cached if is_fetched else 0,
        ),
        price_s=float(quotes.price_s[row, column]),
        num_cached_tokens=num_cached,
        num_prefill_tokens=request.num_prompt_tokens - num_cached,
        wait_s=float(bids.wait_s[index] + (quotes.decode.slot_s[row] if is_local else 0.0)),
        prefill_s=prefill_s,
        itl_s=float(quotes.decode.step_s[row]),
        prefill_error=loads[index].prefill_error,
        due_s=queue.due_s(request.service_class.ttft_s - request.age_s, prefill_s),
    )
