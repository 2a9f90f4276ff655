"""What one request would cost on one worker, in seconds: quotes, each term by name. Pure.

It reads views and cost models; it does not choose.
"""

from dataclasses import dataclass, field, fields

from cluster.types import DecodeCost, PrefillCost, WorkerId
from router.pool import WorkerView

# What a worker reports before it has fitted a model.
_NO_PREFILL_COST = PrefillCost(c0=0.0, c1=0.0)
_NO_DECODE_COST = DecodeCost(d0=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceConfig:
    """What the router assumes where nothing has been measured."""

    expected_output_tokens: int = 128
    handover_s: float = 0.005  # reserve, grant, close
    transfer_bytes_per_s: float = 1e9
    # For workers that have not fitted a model yet: it ranks them by load and prefix.
    unknown_prefill: PrefillCost = field(default_factory=lambda: PrefillCost(c0=0.002, c1=2e-4))
    unknown_decode: DecodeCost = field(
        default_factory=lambda: DecodeCost(d0=0.01, d1=1e-7, d2=0.001)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRequest:
    """A request as the policy sees it: sizes, and how much of its prompt each worker holds."""

    num_prompt_tokens: int
    max_tokens: int
    num_choices: int = 1
    num_cached_tokens: dict[WorkerId, int] = field(default_factory=dict)
    excluded: frozenset[WorkerId] = frozenset()

    def cached(self, worker: WorkerId) -> int:
        """Useful cached tokens: the last prompt token is always computed, to be sampled from."""
        return min(self.num_cached_tokens.get(worker, 0), self.num_prompt_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The price of one candidate, term by term, in seconds."""

    queue_s: float = 0.0  # until the prompt's turn
    slot_s: float = 0.0  # until the decode worker has room
    prefill_s: float = 0.0  # of the uncached part
    transfer_s: float = 0.0
    decode_s: float = 0.0  # this answer, at the batch it would join
    slowdown_s: float = 0.0  # of the answers it would join
    interference_s: float = 0.0  # of running answers, by a prefill beside them
    work_s: float = 0.0  # GPU seconds it adds, times the load factor

    @property
    def total_s(self) -> float:
        waits = self.queue_s + self.slot_s + self.prefill_s + self.transfer_s + self.decode_s
        return waits + self.slowdown_s + self.interference_s + self.work_s

    def plus(self, other: "Terms") -> "Terms":
        """Term by term; for explaining, not for speed."""
        names = [term.name for term in fields(self)]
        return Terms(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What one part of the work costs on one worker."""

    worker: WorkerId
    terms: Terms
    total_s: float
    num_cached_tokens: int


def quote_prefill(
    request: PlacementRequest,
    view: WorkerView,
    load_factor: float,
    config: PriceConfig,
    *,
    now: float,
    num_delayed: int = 0,
) -> Quote:
    """The prompt, computed on this worker after those that wait there. It keeps `num_delayed`
    answers waiting that are decoded on the same worker."""
    num_cached = request.cached(view.worker)
    num_new = request.num_prompt_tokens - num_cached
    cost = view.prefill_cost if view.prefill_cost != _NO_PREFILL_COST else config.unknown_prefill
    # A new token attends to all before it: on average to the cached and half the new ones.
    prefill_s = max(0.0, cost.seconds(num_new, num_cached + num_new // 2))
    terms = Terms(
        queue_s=_queue_s(view, cost, now),
        prefill_s=prefill_s,
        interference_s=prefill_s * num_delayed,
        work_s=load_factor * prefill_s,
    )
    return Quote(
        worker=view.worker, terms=terms, total_s=terms.total_s, num_cached_tokens=num_cached
    )


def quote_local_prefill(
    request: PlacementRequest,
    view: WorkerView,
    load_factor: float,
    config: PriceConfig,
    *,
    now: float,
) -> Quote:
    """The prompt, computed on the decode worker beside its running answers."""
    # One answer more than run now: the worker is lost to whoever comes next, too.
    num_delayed = view.num_running + view.num_booked_sequences + 1
    return quote_prefill(request, view, load_factor, config, now=now, num_delayed=num_delayed)


def quote_decode(
    request: PlacementRequest, view: WorkerView, load_factor: float, config: PriceConfig
) -> Quote:
    """The answer, decoded on this worker."""
    cost = view.decode_cost if view.decode_cost != _NO_DECODE_COST else config.unknown_decode
    num_steps = min(request.max_tokens, config.expected_output_tokens)
    batch = view.num_running + view.num_waiting + view.num_booked_sequences
    context = view.num_context_tokens + view.num_booked_context_tokens
    added_context = request.num_prompt_tokens * request.num_choices
    step_s = cost.seconds(context + added_context, batch + request.num_choices)
    added_s = num_steps * max(0.0, step_s - cost.seconds(context, batch))
    num_missing = request.num_prompt_tokens - request.cached(view.worker)
    is_full = num_missing > view.num_free_tokens or batch >= view.max_sequences > 0
    turns = (view.num_waiting + 1) / max(1, view.num_running)
    terms = Terms(
        slot_s=num_steps * step_s * turns if is_full else 0.0,
        decode_s=num_steps * step_s,
        slowdown_s=added_s * batch,
        work_s=load_factor * added_s,
    )
    return Quote(
        worker=view.worker,
        terms=terms,
        total_s=terms.total_s,
        num_cached_tokens=request.cached(view.worker),
    )


def transfer_s(request: PlacementRequest, decode: WorkerView, config: PriceConfig) -> float:
    """Only what the decode worker does not hold travels."""
    num_tokens = request.num_prompt_tokens - request.cached(decode.worker)
    return config.handover_s + num_tokens * decode.token_bytes / config.transfer_bytes_per_s


def load_factor(views: tuple[WorkerView, ...]) -> float:
    """λ: one plus the mean number of prompts that wait or are computed, a worker."""
    num_prompts = sum(view.num_waiting + view.num_booked_prompts for view in views)
    return 1.0 + num_prompts / max(1, len(views))


def _queue_s(view: WorkerView, cost: PrefillCost, now: float) -> float:
    """What was reported, less the time since; and what was placed there after the report."""
    reported_s = cost.c0 * view.num_waiting + cost.c1 * view.num_queued_tokens
    booked_s = cost.c0 * view.num_booked_prompts + cost.c1 * view.num_booked_tokens
    return max(0.0, reported_s - (now - view.reported_at)) + booked_s
