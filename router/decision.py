"""One decision: `(request, frozen snapshot, state) -> (decision, state)`. Pure; no clock, no I/O.

The least price in seconds wins, over every pair of a decode worker and one that computes the
prompt (itself, or a prefill worker): what this request waits, what it makes others wait, and
the GPU seconds it adds, weighted by the load. A named rule other than the default chooses who
computes the prompt; the decode worker goes by its price then, too.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.types import Placement, WorkerId
from router.load import Column, Loads
from router.pair_costs import CANNOT, Matrix
from router.policies.chosen import chosen_bids
from router.policies.priced import Bids, Priced
from router.policies.rule import Prompt, draw_least_of
from router.policy import Disaggregate, Policy, PolicyState
from router.policy_settings import DEFAULT_CLASS, Order, QueueOrder, ServiceClass, SessionAffinity
from router.pool import PoolSnapshot
from router.price import (
    DecodeTerms,
    ExpectedAnswer,
    HandOverPrice,
    Positions,
    decode_terms,
    term_at,
)

DEFAULT_OUTPUT_TOKENS = 128.0  # of an answer, until something has been observed


class PlacementRequest(NamedTuple):
    """A request as the policy sees it: sizes, its class, and what each worker holds of it."""

    num_prompt_tokens: int
    max_tokens: int
    num_choices: int = 1
    num_output_tokens: float = DEFAULT_OUTPUT_TOKENS  # predicted, a choice
    num_typical_tokens: float = DEFAULT_OUTPUT_TOKENS  # half of such answers have no more
    service_class: ServiceClass = DEFAULT_CLASS
    age_s: float = 0.0  # since it arrived
    grain_tokens: int = 16
    # [loads], as all columns of a request: of the snapshot that it is decided with.
    num_ready: Column | None = None  # leading grains computed; None: nobody has any
    # With what was placed there and will be computed by the prompt's turn; None: no more.
    num_held: Column | None = None
    # Prompts that wait behind the same prefix: who would share a copy of it made elsewhere.
    num_siblings: Column | None = None
    excluded: frozenset[WorkerId] = frozenset()
    session_worker: WorkerId | None = None  # who decoded for its session last
    tenant_excess: float = 1.0  # how many times its share its tenant used, while workers are short

    def num_ready_at(self, position: int) -> int:
        """Leading grains that this worker has computed."""
        return 0 if self.num_ready is None else int(self.num_ready[position])

    def num_held_at(self, position: int) -> int:
        """Leading grains that it has by the prompt's turn without computing or fetching them."""
        held = self.num_held
        return self.num_ready_at(position) if held is None else int(held[position])

    @property
    def target_s(self) -> float:
        """Says when, from now, the first token is due; later for who used more than its share."""
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
    # Leading grains of the prompt that are computed where it will be computed; and that are by its
    # turn, without computing or fetching them.
    num_ready: int = 0
    num_held: int = 0

    @property
    def ttft_s(self) -> float:
        """Says when, from now, the first token comes."""
        return self.wait_s + self.prefill_s


class Quotes(NamedTuple):
    """The candidates of one decision, priced; those that cannot be the cheapest left out.

    Candidate i < len(rows) * len(columns) is of decode worker rows[i // len(columns)] and
    prefill worker columns[i % len(columns)]; those after are of each decode worker alone.
    """

    price_s: Column
    rows: Positions
    columns: Positions
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
    if request.excluded.issuperset(load.worker for load in snapshot.decode):
        return None, state
    quotes = quote(request, snapshot, state, policy)
    position, random = draw_least_of(quotes.price_s, state.random)
    decision = _decision(request, snapshot.loads, quotes, position)
    return decision, PolicyState(quotes.rule, random)


def quote(
    request: PlacementRequest,
    snapshot: PoolSnapshot,
    state: PolicyState,
    policy: Policy,
    *,
    all_of_them: bool = False,
    is_bounded: bool = True,
) -> Quotes:
    """Prices the candidates that can win, or all. There is a decode worker. Not `is_bounded`: also
    who would wait longer than an idle worker needs."""
    loads, num_prefill = snapshot.loads, snapshot.loads.num_prefill
    apart = snapshot.costs.handed_apart(num_prefill)
    prompt, answer = _prompt(request, snapshot, policy.queue), _answer(request)
    unfit = _unfit(request, loads)
    barred = _barred(unfit, loads, policy.disaggregate, apart)
    favour_s = _favour(request.session_worker, loads, policy.sessions)
    held = prompt.ready[num_prefill:]
    decode = decode_terms(answer, loads.columns, held, num_prefill)
    decode_s = decode.price_s
    if unfit is not None:
        decode_s = decode_s + CANNOT * unfit[num_prefill:]
    if favour_s is not None:
        decode_s = decode_s + favour_s
    rule, decoder = state.rule, num_prefill + int(decode_s.argmin())
    if isinstance(policy.rule, Priced):
        bids = policy.rule.bids(
            prompt, loads, barred, decode.spare_s, decoder=decoder, is_bounded=is_bounded
        )
    else:
        bids, rule = chosen_bids(policy.rule, prompt, loads, barred, unfit, rule)
    compute_s = bids.price_s if barred is None else bids.price_s + CANNOT * barred
    decode_s = decode_s + bids.backlog * decode.added_s
    local_s = decode_s + compute_s[num_prefill:]
    move = HandOverPrice(
        answer, loads.columns, held, bids.best_prefill_s, snapshot.costs, num_prefill
    )
    remote = move.remote(decode_s, compute_s[:num_prefill], local_s, apart, all_of_them=all_of_them)
    price_s = np.concatenate((remote.price_s.ravel(), local_s))
    return Quotes(
        price_s, remote.rows, remote.columns, remote.hand_over_s, prompt, bids, decode, rule
    )


def _answer(request: PlacementRequest) -> ExpectedAnswer:
    return ExpectedAnswer(
        num_prompt_tokens=request.num_prompt_tokens,
        num_choices=request.num_choices,
        num_steps=min(request.max_tokens, request.num_output_tokens),
        num_typical=min(request.max_tokens, request.num_typical_tokens),
        itl_s=request.service_class.itl_s,
        weight=request.service_class.weight,
    )


def _prompt(request: PlacementRequest, snapshot: PoolSnapshot, queue: QueueOrder) -> Prompt:
    ready = cached = _tokens(request.num_ready, request, snapshot.loads)
    if request.num_held is not None:
        cached = _tokens(request.num_held, request, snapshot.loads)
    is_fifo = queue.order is Order.FIFO
    return Prompt(
        num_tokens=request.num_prompt_tokens,
        cached=cached,
        ready=ready,
        costs=snapshot.costs,
        num_siblings=request.num_siblings,
        now_s=snapshot.now,
        slack_s=0.0 if is_fifo else request.target_s,
        stretch=0.0 if is_fifo else queue.stretch,
        late_after_s=request.target_s,
        most_late_s=request.service_class.ttft_s,
        weight=request.service_class.weight,
        block_tokens=request.grain_tokens,
    )


def _tokens(num_grains: Column | None, request: PlacementRequest, loads: Loads) -> Column:
    """[loads]. The last prompt token is always computed, to be sampled from."""
    if num_grains is None:
        return np.zeros(len(loads))
    num_tokens = num_grains * float(request.grain_tokens)
    tokens: Column = np.minimum(num_tokens, float(request.num_prompt_tokens - 1))
    return tokens


def num_needed(request: PlacementRequest, loads: Loads) -> Column:
    """Tokens [loads] that must fit a worker's cache: where answers are decoded all but the last
    token of it, too."""
    needed = np.full(len(loads), float(request.num_prompt_tokens))
    needed[loads.num_prefill :] += request.max_tokens - 1
    return needed


def _unfit(request: PlacementRequest, loads: Loads) -> NDArray[np.bool_] | None:
    """Marks who failed this request or is too small for it [loads]; None: nobody. If it fits no
    decode worker any of them may tell its caller so."""
    num_total = loads.columns.num_total_tokens
    is_ample = num_total[num_total.argmin()] >= request.num_prompt_tokens + request.max_tokens - 1
    if is_ample and not request.excluded:
        return None
    is_small = num_total < num_needed(request, loads)
    if not request.excluded and not is_small.any():
        return None
    failed = np.zeros(len(loads), dtype=bool)
    failed[[loads.positions[worker] for worker in request.excluded & loads.positions.keys()]] = True
    unfit: NDArray[np.bool_] = failed | is_small
    decodes = slice(loads.num_prefill, None)
    if unfit[decodes].all():
        unfit[decodes] = failed[decodes]
    return unfit


def _barred(
    unfit: NDArray[np.bool_] | None,
    loads: Loads,
    disaggregate: Disaggregate,
    apart: NDArray[np.bool_] | None,
) -> NDArray[np.bool_] | None:
    """Marks who may not compute the prompt [loads]; None: everybody may."""
    if disaggregate is Disaggregate.AUTO:
        return unfit
    num_prefill = loads.num_prefill
    barred = np.zeros(len(loads), dtype=bool) if unfit is None else unfit.copy()
    if disaggregate is Disaggregate.NEVER:
        barred[:num_prefill] = True
    elif apart is not None:  # whoever has nobody to compute for it computes itself
        barred[num_prefill:] |= (~apart & ~barred[:num_prefill]).any(axis=1)
    elif not barred[:num_prefill].all():
        barred[num_prefill:] = True
    return barred


def _favour(
    session_worker: WorkerId | None, loads: Loads, sessions: SessionAffinity | None
) -> Column | None:
    """Seconds [decode workers] that make the session's cheaper; None: it has none."""
    if sessions is None or not session_worker:
        return None
    favour_s = np.zeros(len(loads))
    if (position := loads.positions.get(session_worker)) is not None:
        favour_s[position] = -sessions.max_penalty_s
    return favour_s[loads.num_prefill :]


def _decision(request: PlacementRequest, loads: Loads, quotes: Quotes, position: int) -> Decision:
    bids, num_prefill = quotes.bids, loads.num_prefill
    row, column = quotes.candidate(position)
    index = num_prefill + row if column is None else column
    way, fetches = bids.way(index), bids.fetches(index)
    num_cached, prefill_s = bids.num_cached(index, quotes.prompt), float(way.prefill_s[index])
    slot_s = term_at(quotes.decode.slot_s, row) if column is None else 0.0
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
        num_ready=request.num_ready_at(index),
        num_held=request.num_held_at(index),
    )


class Attempt(NamedTuple):
    request: PlacementRequest
    snapshot: PoolSnapshot
    state: PolicyState  # before
    policy: Policy
    decision: Decision | None  # None: nobody was left

    def as_rows(self) -> "Attempt":
        """The same without the snapshot's columns, which are larger by far than its rows: these
        are shared with other snapshots."""
        loads = self.snapshot.loads
        rows = Loads(loads, num_prefill=loads.num_prefill)
        return self._replace(snapshot=self.snapshot._replace(loads=rows))
