"""The values that cross package borders. No behaviour beyond derived numbers, no I/O.

Token ids are plain ints; token `t` of a sequence lies in block `t // block_size` of its
block table. Seconds end in `_s`, bytes in `_bytes`, counts start with `num_`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

from cluster.parameters import GenerationParams as GenerationParams
from cluster.parameters import SamplingParams as SamplingParams
from cluster.wire_version import WIRE_VERSION

WorkerId = NewType("WorkerId", str)
Incarnation = NewType("Incarnation", str)  # one life of a worker process
BlockId = NewType("BlockId", int)
GrainHash = NewType("GrainHash", bytes)  # 16 bytes: chain hash of a grain and all before it


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingHints:
    """Holds what a request says about how it is to be served; empty: nothing."""

    service_class: str = ""  # whose targets and weight count for it
    session_key: str = ""  # requests with the same one share what they are about
    ttft_budget_s: float | None = None  # these narrow the targets of the class
    itl_budget_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    token_id: int
    logprob: float | None  # None: the first prompt token has none
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    token_id: int
    logprob: TokenLogprob | None = None


DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
# Layers with a sliding window keep KV by such runs of tokens: a multiple of usual block sizes,
# so that few blocks are half there. Part of the wire version.
WINDOW_GRAIN = 32


def first_visible(window: int | None, stop: int) -> int:
    """The first token whose KV a layer with this window still needs once `stop` tokens are
    there, also for a sequence that leaves this one up to a grain earlier. Never falls as `stop`
    rises."""
    if window is None:
        return 0
    oldest = stop // WINDOW_GRAIN * WINDOW_GRAIN - window + 1
    return max(0, oldest // WINDOW_GRAIN * WINDOW_GRAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """Geometry of a KV pool: a C-contiguous array
    [num_layers, num_planes, num_blocks, block_size, num_kv_heads, head_dim] of `dtype`.

    A pool may be one of several that share a worker's heads: then it holds those from
    `first_head` on, of `total_heads`.
    """

    num_layers: int
    num_blocks: int
    block_size: int  # tokens
    num_kv_heads: int  # in this pool
    head_dim: int
    dtype: str = "float32"  # float32, bfloat16, float16
    num_planes: int = 2  # K and V; 1: one latent for both, of one head
    first_head: int = 0
    total_heads: int = 0  # 0: all are here
    windows: tuple[int | None, ...] = ()  # by layer: tokens it sees, itself included; empty: all

    @property
    def heads(self) -> range:
        """Gives those of the model's KV heads that this pool holds."""
        return range(self.first_head, self.first_head + self.num_kv_heads)

    @property
    def num_model_heads(self) -> int:
        return self.total_heads or self.num_kv_heads

    @property
    def head_bytes(self) -> int:
        """Bytes of one head of one token's K (or V) in one layer."""
        return self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def slot_bytes(self) -> int:
        """Bytes of one token's K (or V) in one layer."""
        return self.num_kv_heads * self.head_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of one block's K (or V) in one layer."""
        return self.block_size * self.slot_bytes

    @property
    def plane_bytes(self) -> int:
        """Bytes of one layer's K (or V)."""
        return self.num_blocks * self.block_bytes

    @property
    def pool_bytes(self) -> int:
        return self.num_layers * self.num_planes * self.plane_bytes

    @property
    def widest_window(self) -> int | None:
        """None: no layer has one."""
        return max(filter(None, self.windows), default=None)

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Holds what two workers must share before KV may move between them."""

    model_digest: str
    tokenizer_digest: str
    template_digest: str
    hash_grain: int
    layout: KvLayout  # block size, block count, heads held and dtype may differ
    wire_version: int = WIRE_VERSION
    wire_dtype: str | None = None  # what this worker lets KV be narrowed to; None: lossless only


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAddress:
    """Says where a worker is reached. `transports` maps a transport's name to the opaque
    address of its KV pool."""

    worker_id: WorkerId
    incarnation: Incarnation
    address: str  # host:port
    transports: Mapping[str, str]
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A worker as it registers itself."""

    worker: WorkerAddress
    role: Role
    model: str
    context_length: int
    max_sequences: int
    # Earlier incarnations of its process: they have ended, and write nothing any more.
    past_lives: tuple[Incarnation, ...] = ()
    metrics: str = ""  # host:port where it is scraped; empty: nowhere


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillCost:
    """seconds = c0 + c1 * new + c2 * context + c3 * new * context"""

    c0: float
    c1: float
    c2: float = 0.0
    c3: float = 0.0

    def seconds(self, num_new: int, num_context: int) -> float:
        return self.c0 + (self.c1 + self.c3 * num_context) * num_new + self.c2 * num_context

    def times(self, factor: float) -> "PrefillCost":
        """Gives the cost on a worker that takes so many times as long."""
        c0, c1, c2, c3 = self.c0, self.c1, self.c2, self.c3
        return PrefillCost(c0=c0 * factor, c1=c1 * factor, c2=c2 * factor, c3=c3 * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeCost:
    """seconds a step = d0 + d1 * context tokens of the batch + d2 * batch"""

    d0: float
    d1: float = 0.0
    d2: float = 0.0

    def seconds(self, num_context: int, batch: int) -> float:
        return self.d0 + self.d1 * num_context + self.d2 * batch


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorQuantiles:
    """Holds quantiles of actual / predicted seconds of steps, at the median and above."""

    p50: float = 1.0
    p90: float = 1.0
    p99: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCost:
    """KV that comes here from `peer`: seconds from asking to verified = setup_s + s_per_byte *
    bytes."""

    peer: WorkerId
    setup_s: float
    s_per_byte: float


class Direction(StrEnum):
    """Names the way that KV moves between us and a peer."""

    SENT = "sent"  # written into the peer's pool
    RECEIVED = "received"  # written by the peer into ours


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramReport:
    """Cumulative: `counts[i]` are the values not above `bounds[i]`; the last, without a bound,
    counts all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFailures:
    """Counts how often transfers failed in this phase for this reason."""

    phase: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReport:
    """One end's account of the KV that moved between it and a peer, since its process started."""

    peer: WorkerId
    direction: Direction
    transport: str
    num_transfers: int  # that landed whole; at the receiver: that were verified
    num_bytes: int  # of these
    num_spans: int  # of these; the writer alone counts them
    write_seconds: HistogramReport  # of these: the writes of one, one after another
    verify_s: float
    failures: tuple[PairFailures, ...] = ()
    num_quarantined_blocks: int = 0  # now
    num_fenced: int = 0  # messages of epochs that were over
    num_refused_writes: int = 0  # stopped before their first byte


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """A drain as it goes: nothing new begins at this worker."""

    seconds: float  # since it began
    left_s: float  # until what is in progress is ended
    then: Role | None = None  # of the life that begins when it is done
    ends: bool = False  # its process ends when it is done


MAX_BACKLOG_POINTS = 8
MAX_LINKS = 256
MAX_DUE_S = 1e6  # from receipt, either way


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """Holds what a worker says about itself, a few times a second."""

    num_running: int = 0
    num_waiting: int = 0
    num_queued_tokens: int = 0  # prompt tokens not computed yet
    num_context_tokens: int = 0  # of the running sequences, and of KV that is on its way to join
    num_free_blocks: int = 0  # cached blocks that nobody uses are free
    num_unused_blocks: int = 0  # of the free ones, those that hold nothing: no eviction yet
    num_blocks: int = 0
    tail_reuse: float = 0.0  # share of the cached blocks that became old and were found again
    num_quarantined_blocks: int = 0
    num_claimed_tokens: int = 0  # of prompts computed elsewhere that have no blocks here yet
    # What is queued, by when it is due: (due_s from now, predicted seconds that would pass before
    # the first token of a prompt that arrived now and were due then, without its own). Both
    # rise, there are MAX_BACKLOG_POINTS at the most, the first has what runs now and what is
    # overdue, the last is all of it. Empty: no prompt runs or waits.
    backlog: tuple[tuple[float, float], ...] = ()
    prefill_cost: PrefillCost = PrefillCost(c0=0.0, c1=0.0)
    decode_cost: DecodeCost = DecodeCost(d0=0.0)
    prefill_error: ErrorQuantiles = ErrorQuantiles()
    decode_error: ErrorQuantiles = ErrorQuantiles()
    is_serving: bool = True  # forward progress, and not draining
    is_draining: bool = False
    drain: DrainReport | None = None  # None: it does not drain, or does not tell
    num_open_calls: int = 0  # that must end before it is drained
    step_age_s: float = 0.0  # age of the running step
    request_ids: tuple[str, ...] = ()  # admitted since the last report
    counters: Mapping[str, float] = field(default_factory=dict)
    pairs: tuple[PairReport, ...] | None = ()  # None: not told this time
    links: tuple[LinkCost, ...] | None = ()  # of the peers KV came from; None: not told this time


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheChange:
    """One event: grains that appeared in a worker's cache, and grains that left it. It is the
    net change: no grain is in both."""

    stored: tuple[GrainHash, ...] = ()
    evicted: tuple[GrainHash, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Names who serves a request: `prefill` is None when the decode worker prefills itself."""

    decode: WorkerId
    prefill: WorkerId | None
    source: WorkerId | None = None  # whose cached prefix whoever computes the prompt fetches first
    num_source_tokens: int = 0  # how long it is, as the router believes

    @property
    def computing(self) -> WorkerId:
        """Names who computes the prompt."""
        return self.prefill or self.decode


@dataclass(frozen=True, slots=True, kw_only=True)
class LostAnswer:
    """Says which answer goes on after its stream was lost, and after what."""

    request_id: str
    resume_secret: bytes = field(repr=False)
    next_index: Sequence[int]  # by choice: how many tokens its client has
    worker: str = ""  # who had it, as the client knows; empty: it does not
    epoch: int = 0  # by a client that counts: a call with a lower one is late


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeRequest:
    """A request as workers see it: ids only, every default resolved.

    `emitted` holds, by choice, the tokens already sent by an earlier attempt; they count
    as output for penalties, limits and stops, and are never sampled again.
    """

    request_id: str
    prompt_ids: Sequence[int]
    params: GenerationParams
    hash_key: bytes  # from cluster.block_hash.hash_key
    emitted: tuple[tuple[int, ...], ...] = ()
    # From receipt, when its first token is due: who is due first is computed first. The router
    # decides it; 0 for all is first come, first served, and below 0 it is late already.
    due_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A receiver's leave to write KV of tokens [start, stop) into its blocks."""

    incarnation: Incarnation  # of the receiver
    epoch: int  # of this reservation
    start: int  # what the receiver already holds does not travel
    stop: int
    blocks: tuple[int, ...]  # the whole block table: token t lies in blocks[t // block_size]
    lease_s: float
    transport: str  # the writer uses this one: what can be revoked depends on it
    wire_dtype: str | None = None  # what KV may be narrowed to on the wire; None: lossless only


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanDigest:
    """xxh3_64 of the K, then the V bytes of tokens [start, stop) of one layer, as they must lie
    in the receiver's pool: its dtype, and of its heads those that this writer holds."""

    layer: int
    start: int
    stop: int
    digest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """All layers of tokens [start, stop) have landed; the writer has closed the epoch.

    Layers with a sliding window leave out what no later token sees. `num_bytes` are the bytes
    read from the writer's pool."""

    epoch: int
    start: int
    stop: int
    digests: tuple[SpanDigest, ...]  # empty: only the count is checked
    num_bytes: int
    write_s: float
