"""The values that cross package borders. No behaviour beyond derived numbers, no I/O.

Token ids are plain ints; token `t` of a sequence lies in block `t // block_size` of its
block table. Seconds end in `_s`, bytes in `_bytes`, counts start with `num_`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

WorkerId = NewType("WorkerId", str)
Incarnation = NewType("Incarnation", str)  # one life of a worker process
BlockId = NewType("BlockId", int)
GrainHash = NewType("GrainHash", bytes)  # 16 bytes: chain hash of a grain and all before it


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one token is drawn. Keyed by (seed, choice, position), so it can be drawn anywhere."""

    seed: int
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 is all
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()  # empty is all
    bad_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0  # stop tokens are masked before these
    stop_token_ids: tuple[int, ...] = ()  # the end tokens are among them unless ignore_eos
    num_logprobs: int | None = None  # None: none; k: the sampled token and k alternatives
    num_prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """A request with every default resolved."""

    sampling: SamplingParams
    max_tokens: int
    stop_strings: tuple[str, ...] = ()
    include_stop_string: bool = False
    skip_special_tokens: bool = True
    num_choices: int = 1
    priority: int = 0  # higher first


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    token_id: int
    logprob: float | None  # None: the first prompt token has none
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    token_id: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """Geometry of a KV pool: a C-contiguous array
    [num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim] of `dtype`."""

    num_layers: int
    num_blocks: int
    block_size: int  # tokens
    num_kv_heads: int
    head_dim: int
    dtype: str = "float32"  # float32, bfloat16, float16

    @property
    def slot_bytes(self) -> int:
        """Bytes of one token's K (or V) in one layer."""
        return self.num_kv_heads * self.head_dim * (4 if self.dtype == "float32" else 2)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block's K (or V) in one layer."""
        return self.block_size * self.slot_bytes

    @property
    def pool_bytes(self) -> int:
        return self.num_layers * 2 * self.num_blocks * self.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What two workers must share before KV may move between them."""

    model_digest: str
    tokenizer_digest: str
    template_digest: str
    hash_grain: int
    layout: KvLayout  # block size and block count may differ between the ends
    wire_version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAddress:
    """Where a worker is reached. `transports` maps a transport's name to the opaque
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillCost:
    """seconds = c0 + c1 * new + c2 * context + c3 * new * context"""

    c0: float
    c1: float
    c2: float = 0.0
    c3: float = 0.0

    def seconds(self, num_new: int, num_context: int) -> float:
        return self.c0 + (self.c1 + self.c3 * num_context) * num_new + self.c2 * num_context


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeCost:
    """seconds a step = d0 + d1 * context tokens of the batch + d2 * batch"""

    d0: float
    d1: float = 0.0
    d2: float = 0.0

    def seconds(self, num_context: int, batch: int) -> float:
        return self.d0 + self.d1 * num_context + self.d2 * batch


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What a worker says about itself, a few times a second."""

    num_running: int = 0
    num_waiting: int = 0
    num_queued_tokens: int = 0  # prompt tokens not computed yet
    num_context_tokens: int = 0  # of the running sequences
    num_free_blocks: int = 0  # cached blocks that nobody uses are free
    num_blocks: int = 0
    num_quarantined_blocks: int = 0
    prefill_cost: PrefillCost = PrefillCost(c0=0.0, c1=0.0)
    decode_cost: DecodeCost = DecodeCost(d0=0.0)
    is_serving: bool = True  # forward progress, and not draining
    is_draining: bool = False
    step_age_s: float = 0.0  # age of the running step
    request_ids: tuple[str, ...] = ()  # admitted since the last report
    counters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheChange:
    """One event: grains that appeared in a worker's cache, and grains that left it. It is the
    net change: no grain is in both."""

    stored: tuple[GrainHash, ...] = ()
    evicted: tuple[GrainHash, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Who computes: `prefill` is None when the decode worker prefills itself."""

    decode: WorkerId
    prefill: WorkerId | None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanDigest:
    """xxh3_64 of the K, then the V bytes of tokens [start, stop) of one layer."""

    layer: int
    start: int
    stop: int
    digest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """All layers of tokens [start, stop) have landed; the writer has closed the epoch."""

    epoch: int
    start: int
    stop: int
    digests: tuple[SpanDigest, ...]  # empty: only the count is checked
    num_bytes: int
    write_s: float
