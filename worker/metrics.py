"""Declares the metrics of a worker of either role: what it tells routers in its load reports, and
what its steps took."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cluster.metrics.labels import PERCENTILE, by_percentile
from cluster.metrics.metric import Alias, Kind, Label, Metric, Series, by_label, value
from cluster.types import Direction, HistogramReport, LoadReport, PairReport
from kv_transfer.doors import DOORS
from kv_transfer.stats import MAX_PAIRS, Reason
from kv_transfer.transfer import State
from worker.steps import StepCounts

# A peer that nobody introduced is called by its incarnation.
_PEER: Final = Label("peer", at_most=MAX_PAIRS, meaning="a member's name")
_DIRECTION: Final = Label("direction", tuple(Direction))
_TRANSPORT: Final = Label("transport", ("memory", *DOORS))
_PAIR: Final = (_PEER, _DIRECTION, _TRANSPORT)
_FAILURE: Final = (*_PAIR, Label("phase", tuple(State)), Label("reason", tuple(Reason)))
_PHASE: Final = Label("phase", ("prefill", "decode"))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReading:
    """What one scrape of a worker reads."""

    load: LoadReport
    steps: StepCounts
    block_bytes: int

    def by_pair(self, read: Callable[[PairReport], float | HistogramReport]) -> Iterator[Series]:
        for pair in self.load.pairs or ():
            yield Series((pair.peer, pair.direction, pair.transport), read(pair))

    def failures(self) -> Iterator[Series]:
        for pair in self.load.pairs or ():
            for each in pair.failures:
                labels = (pair.peer, pair.direction, pair.transport, each.phase, each.reason)
                yield Series(labels, each.count)

    @property
    def kv_usage(self) -> float:
        return 1.0 - self.load.num_free_blocks / max(1, self.load.num_blocks)

    def step_ratios(self) -> Iterator[Series]:
        errors = {"prefill": self.load.prefill_error, "decode": self.load.decode_error}
        for phase, each in errors.items():
            for percentile, ratio in by_percentile(each).items():
                yield Series((phase, percentile), ratio)


def _counter(key: str) -> Callable[[WorkerReading], Iterable[Series]]:
    """What the load report keeps by this name; a role that does not count it has none."""
    return value(lambda r: r.load.counters.get(key, 0.0))


COMPUTING: Final[tuple[Metric[WorkerReading], ...]] = (
    Metric(
        name="penstock_requests_running",
        kind=Kind.GAUGE,
        help="Requests that take a slot: they are computed, or their KV is handed over.",
        read=value(lambda r: r.load.num_running),
        aliases=(Alias("vllm:num_requests_running"),),
    ),
    Metric(
        name="penstock_requests_waiting",
        kind=Kind.GAUGE,
        help="Requests that wait for their turn, blocks, or KV.",
        read=value(lambda r: r.load.num_waiting),
        aliases=(Alias("vllm:num_requests_waiting"),),
    ),
    Metric(
        name="penstock_queued_prompt_tokens",
        kind=Kind.GAUGE,
        help="Tokens of prompts that are to be computed here.",
        read=value(lambda r: r.load.num_queued_tokens),
    ),
    Metric(
        name="penstock_queued_prompt_seconds",
        kind=Kind.GAUGE,
        help="As predicted, until a prompt that arrived now and had no haste would be begun.",
        read=value(lambda r: r.load.backlog[-1][1] if r.load.backlog else 0.0),
    ),
    Metric(
        name="penstock_context_tokens",
        kind=Kind.GAUGE,
        help="Tokens whose KV is in use by running requests, or on its way to them.",
        read=value(lambda r: r.load.num_context_tokens),
    ),
    Metric(
        name="penstock_claimed_tokens",
        kind=Kind.GAUGE,
        help="Tokens of prompts computed elsewhere that have no blocks here yet.",
        read=value(lambda r: r.load.num_claimed_tokens),
    ),
    Metric(
        name="penstock_open_calls",
        kind=Kind.GAUGE,
        help="Calls that must end before this worker is drained.",
        read=value(lambda r: r.load.num_open_calls),
    ),
    Metric(
        name="penstock_worker_serving",
        kind=Kind.GAUGE,
        help="Is 1 while this worker takes requests and its engine moves, else 0.",
        read=value(lambda r: r.load.is_serving),
    ),
    Metric(
        name="penstock_worker_draining",
        kind=Kind.GAUGE,
        help="Is 1 while it drains, else 0.",
        read=value(lambda r: r.load.is_draining),
    ),
)

KV: Final[tuple[Metric[WorkerReading], ...]] = (
    Metric(
        name="penstock_kv_usage_ratio",
        kind=Kind.GAUGE,
        help="Share of the KV pool's blocks that are in use; cached ones that nobody uses"
        " are free.",
        read=value(lambda r: r.kv_usage),
        aliases=(
            Alias("vllm:kv_cache_usage_perc"),
            Alias("vllm:gpu_cache_usage_perc"),
        ),
    ),
    Metric(
        name="penstock_kv_blocks",
        kind=Kind.GAUGE,
        help="Blocks of the KV pool.",
        read=value(lambda r: r.load.num_blocks),
    ),
    Metric(
        name="penstock_kv_free_blocks",
        kind=Kind.GAUGE,
        help="Of these, blocks that nobody uses, cached or not.",
        read=value(lambda r: r.load.num_free_blocks),
    ),
    Metric(
        name="penstock_kv_unused_blocks",
        kind=Kind.GAUGE,
        help="Of these, blocks that hold nothing.",
        read=value(lambda r: r.load.num_unused_blocks),
    ),
    Metric(
        name="penstock_kv_pool_bytes",
        kind=Kind.GAUGE,
        help="Memory of the KV pool.",
        read=value(lambda r: r.load.num_blocks * r.block_bytes),
    ),
    Metric(
        name="penstock_kv_quarantined_bytes",
        kind=Kind.GAUGE,
        help="KV of requests that have ended, held as a writer may write there yet.",
        read=value(lambda r: r.load.num_quarantined_blocks * r.block_bytes),
    ),
    Metric(
        name="penstock_kv_tail_reuse_ratio",
        kind=Kind.GAUGE,
        help="Share of cached blocks that became old and were found again.",
        read=value(lambda r: r.load.tail_reuse),
    ),
    Metric(
        name="penstock_preemptions",
        kind=Kind.COUNTER,
        help="Times that a running request was put back to free its blocks.",
        read=_counter("preemptions"),
        aliases=(Alias("vllm:num_preemptions"),),
    ),
    Metric(
        name="penstock_reused_tokens",
        kind=Kind.COUNTER,
        help="Tokens of prompts whose KV was found here.",
        read=_counter("cached_tokens"),
    ),
    Metric(
        name="penstock_computed_tokens",
        kind=Kind.COUNTER,
        help="Tokens that went through the model here, of prompts and of answers.",
        read=_counter("computed_tokens"),
    ),
    Metric(
        name="penstock_sampled_tokens",
        kind=Kind.COUNTER,
        help="Tokens drawn here.",
        read=value(lambda r: r.steps.num_sampled),
    ),
    Metric(
        name="penstock_copied_blocks",
        kind=Kind.COUNTER,
        help="Blocks copied as two requests were to write into one.",
        read=_counter("copied_blocks"),
    ),
)

STEPS: Final[tuple[Metric[WorkerReading], ...]] = (
    Metric(
        name="penstock_step_seconds",
        kind=Kind.HISTOGRAM,
        help="A step, from forming its batch to having taken in what it gave.",
        read=value(lambda r: r.steps.seconds.report()),
    ),
    Metric(
        name="penstock_step_age_seconds",
        kind=Kind.GAUGE,
        help="For how long the step that runs now has run; 0: none does.",
        read=value(lambda r: r.load.step_age_s),
    ),
    Metric(
        name="penstock_step_prediction_ratio",
        kind=Kind.GAUGE,
        help="Actual over predicted seconds of the last steps.",
        labels=(_PHASE, PERCENTILE),
        read=lambda r: r.step_ratios(),
    ),
    Metric(
        name="penstock_dead_work_seconds",
        kind=Kind.COUNTER,
        help="Forward of requests that ended while it ran, by their share of the tokens.",
        read=value(lambda r: r.steps.dead_s),
    ),
)

DETACHED: Final[tuple[Metric[WorkerReading], ...]] = (
    Metric(
        name="penstock_detached_answers",
        kind=Kind.GAUGE,
        help="Answers whose router is lost or silent, and that wait for their client.",
        read=_counter("detached_answers"),
    ),
    Metric(
        name="penstock_answers_attached",
        kind=Kind.COUNTER,
        help="Answers with which a client went on by another call.",
        read=_counter("answers_attached"),
    ),
    Metric(
        name="penstock_answers_given_up",
        kind=Kind.COUNTER,
        help="Answers that were not whole, and that no client came back for.",
        read=_counter("answers_given_up"),
    ),
)

TRANSFERS: Final[tuple[Metric[WorkerReading], ...]] = (
    Metric(
        name="penstock_hand_overs",
        kind=Kind.COUNTER,
        help="Prompts received whose KV was computed elsewhere.",
        read=_counter("hand_overs_received"),
    ),
    Metric(
        name="penstock_hand_over_recomputes",
        kind=Kind.COUNTER,
        help="Prompts computed here after all, as their hand-over failed.",
        read=_counter("hand_over_recomputes"),
    ),
    Metric(
        name="penstock_fetches",
        kind=Kind.COUNTER,
        help="Cached prefixes fetched from another worker.",
        read=_counter("fetches"),
    ),
    Metric(
        name="penstock_fetch_failures",
        kind=Kind.COUNTER,
        help="Fetches that failed: what they were for was computed.",
        read=_counter("fetch_failures"),
    ),
    Metric(
        name="penstock_fetched_tokens",
        kind=Kind.COUNTER,
        help="Tokens of the prefixes that were fetched.",
        read=_counter("fetched_tokens"),
    ),
    Metric(
        name="penstock_lent_tokens",
        kind=Kind.COUNTER,
        help="Tokens of cached prefixes that others fetched from here.",
        read=_counter("lent_tokens"),
    ),
    Metric(
        name="penstock_pairs_up",
        kind=Kind.GAUGE,
        help="Workers that KV can move between and this one.",
        read=_counter("pairs_up"),
    ),
    Metric(
        name="penstock_pairs_refused",
        kind=Kind.GAUGE,
        help="Workers that no KV moves between and this one, as they do not fit.",
        read=_counter("pairs_refused"),
    ),
    Metric(
        name="penstock_transfer_seconds",
        kind=Kind.HISTOGRAM,
        help="Writing KV that landed whole, by who the other end is.",
        labels=_PAIR,
        read=lambda r: r.by_pair(lambda p: p.write_seconds),
    ),
    Metric(
        name="penstock_transfer_bytes",
        kind=Kind.COUNTER,
        help="Bytes of KV that landed whole.",
        labels=_PAIR,
        read=lambda r: r.by_pair(lambda p: p.num_bytes),
    ),
    Metric(
        name="penstock_transfer_verify_seconds",
        kind=Kind.COUNTER,
        help="Verifying KV that came.",
        labels=_PAIR,
        read=lambda r: r.by_pair(lambda p: p.verify_s),
    ),
    Metric(
        name="penstock_transfer_failures",
        kind=Kind.COUNTER,
        help="Transfers that did not land, by what was being done and why; cancelled:"
        " nobody needed them any more.",
        labels=_FAILURE,
        read=lambda r: r.failures(),
    ),
    Metric(
        name="penstock_transfer_quarantined_blocks",
        kind=Kind.GAUGE,
        help="Blocks that nobody may use, as the other end may write there yet.",
        labels=_PAIR,
        read=lambda r: r.by_pair(lambda p: p.num_quarantined_blocks),
    ),
    Metric(
        name="penstock_transfer_fenced",
        kind=Kind.COUNTER,
        help="Messages of transfers that were over, and were ignored.",
        labels=_PAIR,
        read=lambda r: r.by_pair(lambda p: p.num_fenced),
    ),
    Metric(
        name="penstock_transfer_refused_writes",
        kind=Kind.COUNTER,
        help="Writes stopped before their first byte.",
        labels=_PAIR,
        read=lambda r: r.by_pair(lambda p: p.num_refused_writes),
    ),
)
LINKS: Final[tuple[Metric[WorkerReading], ...]] = (
    Metric(
        name="penstock_link_setup_seconds",
        kind=Kind.GAUGE,
        help="What KV from a peer costs whatever its size, as measured: from asking to verified.",
        labels=(_PEER,),
        read=by_label(lambda r: {each.peer: each.setup_s for each in r.load.links or ()}),
    ),
    Metric(
        name="penstock_link_seconds_per_byte",
        kind=Kind.GAUGE,
        help="And what each byte adds.",
        labels=(_PEER,),
        read=by_label(lambda r: {each.peer: each.s_per_byte for each in r.load.links or ()}),
    ),
)

WORKER: Final = (*COMPUTING, *KV, *STEPS, *DETACHED, *TRANSFERS, *LINKS)
