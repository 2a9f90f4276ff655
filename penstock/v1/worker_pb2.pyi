from google.protobuf import descriptor_pb2 as _descriptor_pb2
from penstock.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_PREFILL: _ClassVar[Role]
    ROLE_DECODE: _ClassVar[Role]

class PairDirection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PAIR_DIRECTION_UNSPECIFIED: _ClassVar[PairDirection]
    PAIR_DIRECTION_SENT: _ClassVar[PairDirection]
    PAIR_DIRECTION_RECEIVED: _ClassVar[PairDirection]

class PolicyOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_OUTCOME_UNSPECIFIED: _ClassVar[PolicyOutcome]
    POLICY_OUTCOME_UNCHANGED: _ClassVar[PolicyOutcome]
    POLICY_OUTCOME_APPLIED: _ClassVar[PolicyOutcome]
    POLICY_OUTCOME_CANARY: _ClassVar[PolicyOutcome]
    POLICY_OUTCOME_ROLLED_BACK: _ClassVar[PolicyOutcome]
ROLE_UNSPECIFIED: Role
ROLE_PREFILL: Role
ROLE_DECODE: Role
PAIR_DIRECTION_UNSPECIFIED: PairDirection
PAIR_DIRECTION_SENT: PairDirection
PAIR_DIRECTION_RECEIVED: PairDirection
POLICY_OUTCOME_UNSPECIFIED: PolicyOutcome
POLICY_OUTCOME_UNCHANGED: PolicyOutcome
POLICY_OUTCOME_APPLIED: PolicyOutcome
POLICY_OUTCOME_CANARY: PolicyOutcome
POLICY_OUTCOME_ROLLED_BACK: PolicyOutcome
OF_ANSWER_FIELD_NUMBER: _ClassVar[int]
of_answer: _descriptor.FieldDescriptor

class ProveRequest(_message.Message):
    __slots__ = ("nonce", "audience", "proof")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    AUDIENCE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    audience: str
    proof: bytes
    def __init__(self, nonce: _Optional[bytes] = ..., audience: _Optional[str] = ..., proof: _Optional[bytes] = ...) -> None: ...

class ProveResponse(_message.Message):
    __slots__ = ("nonce", "proof")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    proof: bytes
    def __init__(self, nonce: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class InternalRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InternalResponse(_message.Message):
    __slots__ = ("address",)
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    address: str
    def __init__(self, address: _Optional[str] = ...) -> None: ...

class ResolvedParams(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "seed", "logit_bias", "allowed_token_ids", "bad_token_ids", "max_tokens", "min_tokens", "stop_strings", "stop_token_ids", "include_stop_string", "skip_special_tokens", "num_logprobs", "num_prompt_logprobs", "num_choices", "priority", "bad_word_ids", "spaces_between_special_tokens")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BAD_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_STRINGS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_STOP_STRING_FIELD_NUMBER: _ClassVar[int]
    SKIP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    NUM_CHOICES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    BAD_WORD_IDS_FIELD_NUMBER: _ClassVar[int]
    SPACES_BETWEEN_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    seed: int
    logit_bias: _containers.ScalarMap[int, float]
    allowed_token_ids: _containers.RepeatedScalarFieldContainer[int]
    bad_token_ids: _containers.RepeatedScalarFieldContainer[int]
    max_tokens: int
    min_tokens: int
    stop_strings: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    include_stop_string: bool
    skip_special_tokens: bool
    num_logprobs: int
    num_prompt_logprobs: int
    num_choices: int
    priority: int
    bad_word_ids: _containers.RepeatedCompositeFieldContainer[_inference_pb2.TokenIds]
    spaces_between_special_tokens: bool
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., allowed_token_ids: _Optional[_Iterable[int]] = ..., bad_token_ids: _Optional[_Iterable[int]] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., stop_strings: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., include_stop_string: bool = ..., skip_special_tokens: bool = ..., num_logprobs: _Optional[int] = ..., num_prompt_logprobs: _Optional[int] = ..., num_choices: _Optional[int] = ..., priority: _Optional[int] = ..., bad_word_ids: _Optional[_Iterable[_Union[_inference_pb2.TokenIds, _Mapping]]] = ..., spaces_between_special_tokens: bool = ...) -> None: ...

class FramesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FramesResponse(_message.Message):
    __slots__ = ("port", "name", "secret", "outlives")
    PORT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    OUTLIVES_FIELD_NUMBER: _ClassVar[int]
    port: int
    name: bytes
    secret: bytes
    outlives: bool
    def __init__(self, port: _Optional[int] = ..., name: _Optional[bytes] = ..., secret: _Optional[bytes] = ..., outlives: bool = ...) -> None: ...

class Reattach(_message.Message):
    __slots__ = ("tenant", "answer")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    answer: _inference_pb2.AttachRequest
    def __init__(self, tenant: _Optional[str] = ..., answer: _Optional[_Union[_inference_pb2.AttachRequest, _Mapping]] = ...) -> None: ...

class EmittedTokens(_message.Message):
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("request_id", "model", "prompt_token_ids", "emitted", "params", "tenant", "cache_scope", "prefill", "router_seconds", "source", "source_tokens", "due_seconds", "resume_secret", "traceparent", "tracestate")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    EMITTED_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CACHE_SCOPE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    ROUTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RESUME_SECRET_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TRACESTATE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    emitted: _containers.RepeatedCompositeFieldContainer[EmittedTokens]
    params: ResolvedParams
    tenant: str
    cache_scope: str
    prefill: WorkerAddress
    router_seconds: float
    source: WorkerAddress
    source_tokens: int
    due_seconds: float
    resume_secret: bytes
    traceparent: str
    tracestate: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., emitted: _Optional[_Iterable[_Union[EmittedTokens, _Mapping]]] = ..., params: _Optional[_Union[ResolvedParams, _Mapping]] = ..., tenant: _Optional[str] = ..., cache_scope: _Optional[str] = ..., prefill: _Optional[_Union[WorkerAddress, _Mapping]] = ..., router_seconds: _Optional[float] = ..., source: _Optional[_Union[WorkerAddress, _Mapping]] = ..., source_tokens: _Optional[int] = ..., due_seconds: _Optional[float] = ..., resume_secret: _Optional[bytes] = ..., traceparent: _Optional[str] = ..., tracestate: _Optional[str] = ...) -> None: ...

class WorkerAddress(_message.Message):
    __slots__ = ("worker_id", "incarnation", "address", "transports", "fingerprint")
    class TransportsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    address: str
    transports: _containers.ScalarMap[str, str]
    fingerprint: Fingerprint
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., address: _Optional[str] = ..., transports: _Optional[_Mapping[str, str]] = ..., fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ...) -> None: ...

class LendRequest(_message.Message):
    __slots__ = ("start", "grant", "renew")
    START_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    start: LendStart
    grant: Grant
    renew: Renew
    def __init__(self, start: _Optional[_Union[LendStart, _Mapping]] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., renew: _Optional[_Union[Renew, _Mapping]] = ...) -> None: ...

class LendStart(_message.Message):
    __slots__ = ("borrower", "prompt", "hashes", "probe_tokens")
    BORROWER_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    PROBE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    borrower: WorkerAddress
    prompt: DecodeRequest
    hashes: bytes
    probe_tokens: int
    def __init__(self, borrower: _Optional[_Union[WorkerAddress, _Mapping]] = ..., prompt: _Optional[_Union[DecodeRequest, _Mapping]] = ..., hashes: _Optional[bytes] = ..., probe_tokens: _Optional[int] = ...) -> None: ...

class Renew(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("incarnation", "epoch", "start_token", "stop_token", "blocks", "lease_seconds", "transport", "wire_dtype")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    START_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    epoch: int
    start_token: int
    stop_token: int
    blocks: _containers.RepeatedScalarFieldContainer[int]
    lease_seconds: float
    transport: str
    wire_dtype: str
    def __init__(self, incarnation: _Optional[str] = ..., epoch: _Optional[int] = ..., start_token: _Optional[int] = ..., stop_token: _Optional[int] = ..., blocks: _Optional[_Iterable[int]] = ..., lease_seconds: _Optional[float] = ..., transport: _Optional[str] = ..., wire_dtype: _Optional[str] = ...) -> None: ...

class LendResponse(_message.Message):
    __slots__ = ("found", "first_tokens", "written", "renewed")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    RENEWED_FIELD_NUMBER: _ClassVar[int]
    found: Found
    first_tokens: FirstTokens
    written: Written
    renewed: Renewed
    def __init__(self, found: _Optional[_Union[Found, _Mapping]] = ..., first_tokens: _Optional[_Union[FirstTokens, _Mapping]] = ..., written: _Optional[_Union[Written, _Mapping]] = ..., renewed: _Optional[_Union[Renewed, _Mapping]] = ...) -> None: ...

class Found(_message.Message):
    __slots__ = ("num_tokens",)
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_tokens: int
    def __init__(self, num_tokens: _Optional[int] = ...) -> None: ...

class Renewed(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FirstTokens(_message.Message):
    __slots__ = ("tokens", "queue_seconds", "prefill_seconds", "forward_seconds", "cached_tokens", "prompt_logprobs")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[SampledToken]
    queue_seconds: float
    prefill_seconds: float
    forward_seconds: float
    cached_tokens: int
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[_inference_pb2.PromptLogprob]
    def __init__(self, tokens: _Optional[_Iterable[_Union[SampledToken, _Mapping]]] = ..., queue_seconds: _Optional[float] = ..., prefill_seconds: _Optional[float] = ..., forward_seconds: _Optional[float] = ..., cached_tokens: _Optional[int] = ..., prompt_logprobs: _Optional[_Iterable[_Union[_inference_pb2.PromptLogprob, _Mapping]]] = ...) -> None: ...

class SampledToken(_message.Message):
    __slots__ = ("token_id", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: _inference_pb2.TokenLogprob
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[_Union[_inference_pb2.TokenLogprob, _Mapping]] = ...) -> None: ...

class Written(_message.Message):
    __slots__ = ("epoch", "start_token", "stop_token", "digests", "num_bytes", "write_seconds")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    START_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    WRITE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    start_token: int
    stop_token: int
    digests: _containers.RepeatedCompositeFieldContainer[SpanDigest]
    num_bytes: int
    write_seconds: float
    def __init__(self, epoch: _Optional[int] = ..., start_token: _Optional[int] = ..., stop_token: _Optional[int] = ..., digests: _Optional[_Iterable[_Union[SpanDigest, _Mapping]]] = ..., num_bytes: _Optional[int] = ..., write_seconds: _Optional[float] = ...) -> None: ...

class SpanDigest(_message.Message):
    __slots__ = ("layer", "start_token", "stop_token", "digest")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    START_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    layer: int
    start_token: int
    stop_token: int
    digest: int
    def __init__(self, layer: _Optional[int] = ..., start_token: _Optional[int] = ..., stop_token: _Optional[int] = ..., digest: _Optional[int] = ...) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ("source", "num_tokens", "transport")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    source: WorkerAddress
    num_tokens: int
    transport: str
    def __init__(self, source: _Optional[_Union[WorkerAddress, _Mapping]] = ..., num_tokens: _Optional[int] = ..., transport: _Optional[str] = ...) -> None: ...

class ProbeResponse(_message.Message):
    __slots__ = ("transport", "num_tokens", "num_bytes", "seconds", "write_seconds", "connect_seconds")
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WRITE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CONNECT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    transport: str
    num_tokens: int
    num_bytes: int
    seconds: float
    write_seconds: float
    connect_seconds: float
    def __init__(self, transport: _Optional[str] = ..., num_tokens: _Optional[int] = ..., num_bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., write_seconds: _Optional[float] = ..., connect_seconds: _Optional[float] = ...) -> None: ...

class FenceRequest(_message.Message):
    __slots__ = ("incarnation", "epochs")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    epochs: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, incarnation: _Optional[str] = ..., epochs: _Optional[_Iterable[int]] = ...) -> None: ...

class FenceResponse(_message.Message):
    __slots__ = ("incarnation",)
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    def __init__(self, incarnation: _Optional[str] = ...) -> None: ...

class Fingerprint(_message.Message):
    __slots__ = ("model_digest", "tokenizer_digest", "template_digest", "kv_dtype", "hash_grain", "num_layers", "num_kv_heads", "head_dim", "block_size", "num_blocks", "wire_version", "num_planes", "first_head", "total_heads", "windows", "wire_dtype")
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    KV_DTYPE_FIELD_NUMBER: _ClassVar[int]
    HASH_GRAIN_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_PLANES_FIELD_NUMBER: _ClassVar[int]
    FIRST_HEAD_FIELD_NUMBER: _ClassVar[int]
    TOTAL_HEADS_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    model_digest: str
    tokenizer_digest: str
    template_digest: str
    kv_dtype: str
    hash_grain: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    num_blocks: int
    wire_version: int
    num_planes: int
    first_head: int
    total_heads: int
    windows: _containers.RepeatedScalarFieldContainer[int]
    wire_dtype: str
    def __init__(self, model_digest: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., template_digest: _Optional[str] = ..., kv_dtype: _Optional[str] = ..., hash_grain: _Optional[int] = ..., num_layers: _Optional[int] = ..., num_kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., block_size: _Optional[int] = ..., num_blocks: _Optional[int] = ..., wire_version: _Optional[int] = ..., num_planes: _Optional[int] = ..., first_head: _Optional[int] = ..., total_heads: _Optional[int] = ..., windows: _Optional[_Iterable[int]] = ..., wire_dtype: _Optional[str] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("worker", "role", "model", "context_length", "max_sequences", "ttl_seconds", "past_lives", "metrics")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PAST_LIVES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    worker: WorkerAddress
    role: Role
    model: str
    context_length: int
    max_sequences: int
    ttl_seconds: float
    past_lives: _containers.RepeatedScalarFieldContainer[str]
    metrics: str
    def __init__(self, worker: _Optional[_Union[WorkerAddress, _Mapping]] = ..., role: _Optional[_Union[Role, str]] = ..., model: _Optional[str] = ..., context_length: _Optional[int] = ..., max_sequences: _Optional[int] = ..., ttl_seconds: _Optional[float] = ..., past_lives: _Optional[_Iterable[str]] = ..., metrics: _Optional[str] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("members",)
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[RegisterRequest]
    def __init__(self, members: _Optional[_Iterable[_Union[RegisterRequest, _Mapping]]] = ...) -> None: ...

class DeregisterRequest(_message.Message):
    __slots__ = ("worker_id", "incarnation")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ...) -> None: ...

class DeregisterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("worker_id", "limit_seconds", "then", "force", "stays")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    THEN_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    STAYS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    limit_seconds: float
    then: Role
    force: bool
    stays: str
    def __init__(self, worker_id: _Optional[str] = ..., limit_seconds: _Optional[float] = ..., then: _Optional[_Union[Role, str]] = ..., force: bool = ..., stays: _Optional[str] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("incarnation", "open_calls", "limit_seconds", "promised")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    OPEN_CALLS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROMISED_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    open_calls: int
    limit_seconds: float
    promised: bool
    def __init__(self, incarnation: _Optional[str] = ..., open_calls: _Optional[int] = ..., limit_seconds: _Optional[float] = ..., promised: bool = ...) -> None: ...

class UndrainRequest(_message.Message):
    __slots__ = ("worker_id",)
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    def __init__(self, worker_id: _Optional[str] = ...) -> None: ...

class UndrainResponse(_message.Message):
    __slots__ = ("incarnation",)
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    def __init__(self, incarnation: _Optional[str] = ...) -> None: ...

class StayRequest(_message.Message):
    __slots__ = ("promise", "seconds")
    PROMISE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    promise: str
    seconds: float
    def __init__(self, promise: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class StayResponse(_message.Message):
    __slots__ = ("incarnation",)
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    def __init__(self, incarnation: _Optional[str] = ...) -> None: ...

class DrainReport(_message.Message):
    __slots__ = ("seconds", "left_seconds", "then", "ends")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEFT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    THEN_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    left_seconds: float
    then: Role
    ends: bool
    def __init__(self, seconds: _Optional[float] = ..., left_seconds: _Optional[float] = ..., then: _Optional[_Union[Role, str]] = ..., ends: bool = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("incarnation", "after_number")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    AFTER_NUMBER_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    after_number: int
    def __init__(self, incarnation: _Optional[str] = ..., after_number: _Optional[int] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("snapshot", "events", "load", "number")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    snapshot: CacheSnapshot
    events: CacheEvents
    load: LoadReport
    number: int
    def __init__(self, snapshot: _Optional[_Union[CacheSnapshot, _Mapping]] = ..., events: _Optional[_Union[CacheEvents, _Mapping]] = ..., load: _Optional[_Union[LoadReport, _Mapping]] = ..., number: _Optional[int] = ...) -> None: ...

class CacheSnapshot(_message.Message):
    __slots__ = ("incarnation", "number", "hashes", "last", "offset")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    number: int
    hashes: bytes
    last: bool
    offset: int
    def __init__(self, incarnation: _Optional[str] = ..., number: _Optional[int] = ..., hashes: _Optional[bytes] = ..., last: bool = ..., offset: _Optional[int] = ...) -> None: ...

class CacheEvents(_message.Message):
    __slots__ = ("first_number", "events")
    FIRST_NUMBER_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    first_number: int
    events: _containers.RepeatedCompositeFieldContainer[CacheEvent]
    def __init__(self, first_number: _Optional[int] = ..., events: _Optional[_Iterable[_Union[CacheEvent, _Mapping]]] = ...) -> None: ...

class CacheEvent(_message.Message):
    __slots__ = ("stored", "evicted")
    STORED_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    stored: bytes
    evicted: bytes
    def __init__(self, stored: _Optional[bytes] = ..., evicted: _Optional[bytes] = ...) -> None: ...

class LoadReport(_message.Message):
    __slots__ = ("num_running", "num_waiting", "queued_tokens", "running_context_tokens", "num_free_blocks", "num_blocks", "prefill", "decode", "serving", "draining", "step_age_seconds", "request_ids", "counters", "num_quarantined_blocks", "pairs", "pairs_left_out", "backlog", "prefill_error", "decode_error", "links", "links_left_out", "claimed_tokens", "num_unused_blocks", "tail_reuse", "open_calls", "drain")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    STEP_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    NUM_QUARANTINED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_FIELD_NUMBER: _ClassVar[int]
    PREFILL_ERROR_FIELD_NUMBER: _ClassVar[int]
    DECODE_ERROR_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    LINKS_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    CLAIMED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_UNUSED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TAIL_REUSE_FIELD_NUMBER: _ClassVar[int]
    OPEN_CALLS_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    num_running: int
    num_waiting: int
    queued_tokens: int
    running_context_tokens: int
    num_free_blocks: int
    num_blocks: int
    prefill: PrefillCost
    decode: DecodeCost
    serving: bool
    draining: bool
    step_age_seconds: float
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    counters: _containers.ScalarMap[str, float]
    num_quarantined_blocks: int
    pairs: _containers.RepeatedCompositeFieldContainer[PairReport]
    pairs_left_out: bool
    backlog: _containers.RepeatedCompositeFieldContainer[BacklogPoint]
    prefill_error: ErrorQuantiles
    decode_error: ErrorQuantiles
    links: _containers.RepeatedCompositeFieldContainer[LinkCost]
    links_left_out: bool
    claimed_tokens: int
    num_unused_blocks: int
    tail_reuse: float
    open_calls: int
    drain: DrainReport
    def __init__(self, num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., running_context_tokens: _Optional[int] = ..., num_free_blocks: _Optional[int] = ..., num_blocks: _Optional[int] = ..., prefill: _Optional[_Union[PrefillCost, _Mapping]] = ..., decode: _Optional[_Union[DecodeCost, _Mapping]] = ..., serving: bool = ..., draining: bool = ..., step_age_seconds: _Optional[float] = ..., request_ids: _Optional[_Iterable[str]] = ..., counters: _Optional[_Mapping[str, float]] = ..., num_quarantined_blocks: _Optional[int] = ..., pairs: _Optional[_Iterable[_Union[PairReport, _Mapping]]] = ..., pairs_left_out: bool = ..., backlog: _Optional[_Iterable[_Union[BacklogPoint, _Mapping]]] = ..., prefill_error: _Optional[_Union[ErrorQuantiles, _Mapping]] = ..., decode_error: _Optional[_Union[ErrorQuantiles, _Mapping]] = ..., links: _Optional[_Iterable[_Union[LinkCost, _Mapping]]] = ..., links_left_out: bool = ..., claimed_tokens: _Optional[int] = ..., num_unused_blocks: _Optional[int] = ..., tail_reuse: _Optional[float] = ..., open_calls: _Optional[int] = ..., drain: _Optional[_Union[DrainReport, _Mapping]] = ...) -> None: ...

class BacklogPoint(_message.Message):
    __slots__ = ("due_seconds", "work_seconds")
    DUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WORK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    due_seconds: float
    work_seconds: float
    def __init__(self, due_seconds: _Optional[float] = ..., work_seconds: _Optional[float] = ...) -> None: ...

class ErrorQuantiles(_message.Message):
    __slots__ = ("p50", "p90", "p99")
    P50_FIELD_NUMBER: _ClassVar[int]
    P90_FIELD_NUMBER: _ClassVar[int]
    P99_FIELD_NUMBER: _ClassVar[int]
    p50: float
    p90: float
    p99: float
    def __init__(self, p50: _Optional[float] = ..., p90: _Optional[float] = ..., p99: _Optional[float] = ...) -> None: ...

class LinkCost(_message.Message):
    __slots__ = ("peer", "setup_seconds", "seconds_per_byte")
    PEER_FIELD_NUMBER: _ClassVar[int]
    SETUP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_PER_BYTE_FIELD_NUMBER: _ClassVar[int]
    peer: str
    setup_seconds: float
    seconds_per_byte: float
    def __init__(self, peer: _Optional[str] = ..., setup_seconds: _Optional[float] = ..., seconds_per_byte: _Optional[float] = ...) -> None: ...

class PairReport(_message.Message):
    __slots__ = ("peer", "direction", "transport", "transfers", "bytes", "spans", "write_seconds", "verify_seconds", "failures", "quarantined_blocks", "fenced", "refused_writes")
    PEER_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    WRITE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    VERIFY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FENCED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_WRITES_FIELD_NUMBER: _ClassVar[int]
    peer: str
    direction: PairDirection
    transport: str
    transfers: int
    bytes: int
    spans: int
    write_seconds: Histogram
    verify_seconds: float
    failures: _containers.RepeatedCompositeFieldContainer[PairFailures]
    quarantined_blocks: int
    fenced: int
    refused_writes: int
    def __init__(self, peer: _Optional[str] = ..., direction: _Optional[_Union[PairDirection, str]] = ..., transport: _Optional[str] = ..., transfers: _Optional[int] = ..., bytes: _Optional[int] = ..., spans: _Optional[int] = ..., write_seconds: _Optional[_Union[Histogram, _Mapping]] = ..., verify_seconds: _Optional[float] = ..., failures: _Optional[_Iterable[_Union[PairFailures, _Mapping]]] = ..., quarantined_blocks: _Optional[int] = ..., fenced: _Optional[int] = ..., refused_writes: _Optional[int] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("bounds", "counts", "sum")
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    bounds: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum: float
    def __init__(self, bounds: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., sum: _Optional[float] = ...) -> None: ...

class PairFailures(_message.Message):
    __slots__ = ("phase", "reason", "count")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    phase: str
    reason: str
    count: int
    def __init__(self, phase: _Optional[str] = ..., reason: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class PrefillCost(_message.Message):
    __slots__ = ("c0", "c1", "c2", "c3")
    C0_FIELD_NUMBER: _ClassVar[int]
    C1_FIELD_NUMBER: _ClassVar[int]
    C2_FIELD_NUMBER: _ClassVar[int]
    C3_FIELD_NUMBER: _ClassVar[int]
    c0: float
    c1: float
    c2: float
    c3: float
    def __init__(self, c0: _Optional[float] = ..., c1: _Optional[float] = ..., c2: _Optional[float] = ..., c3: _Optional[float] = ...) -> None: ...

class DecodeCost(_message.Message):
    __slots__ = ("d0", "d1", "d2")
    D0_FIELD_NUMBER: _ClassVar[int]
    D1_FIELD_NUMBER: _ClassVar[int]
    D2_FIELD_NUMBER: _ClassVar[int]
    d0: float
    d1: float
    d2: float
    def __init__(self, d0: _Optional[float] = ..., d1: _Optional[float] = ..., d2: _Optional[float] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("workers", "requests_in_flight", "index_grains", "index_bytes", "router_version", "relay", "forgotten_grains", "expected_grains", "accuracy", "classes", "tenants", "short_of_workers", "sessions", "warming_up", "waiting", "away", "listens", "insecure", "internal", "callers", "plain", "metrics", "certificate")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    INDEX_GRAINS_FIELD_NUMBER: _ClassVar[int]
    INDEX_BYTES_FIELD_NUMBER: _ClassVar[int]
    ROUTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    RELAY_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_GRAINS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_GRAINS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    SHORT_OF_WORKERS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    WARMING_UP_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    AWAY_FIELD_NUMBER: _ClassVar[int]
    LISTENS_FIELD_NUMBER: _ClassVar[int]
    INSECURE_FIELD_NUMBER: _ClassVar[int]
    INTERNAL_FIELD_NUMBER: _ClassVar[int]
    CALLERS_FIELD_NUMBER: _ClassVar[int]
    PLAIN_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    requests_in_flight: int
    index_grains: int
    index_bytes: int
    router_version: str
    relay: RelayStatus
    forgotten_grains: int
    expected_grains: int
    accuracy: AccuracyStatus
    classes: _containers.RepeatedCompositeFieldContainer[ClassStatus]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantStatus]
    short_of_workers: bool
    sessions: int
    warming_up: bool
    waiting: WaitingStatus
    away: _containers.RepeatedCompositeFieldContainer[AwayWorker]
    listens: str
    insecure: bool
    internal: str
    callers: CallersStatus
    plain: bool
    metrics: str
    certificate: CertificateStatus
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., requests_in_flight: _Optional[int] = ..., index_grains: _Optional[int] = ..., index_bytes: _Optional[int] = ..., router_version: _Optional[str] = ..., relay: _Optional[_Union[RelayStatus, _Mapping]] = ..., forgotten_grains: _Optional[int] = ..., expected_grains: _Optional[int] = ..., accuracy: _Optional[_Union[AccuracyStatus, _Mapping]] = ..., classes: _Optional[_Iterable[_Union[ClassStatus, _Mapping]]] = ..., tenants: _Optional[_Iterable[_Union[TenantStatus, _Mapping]]] = ..., short_of_workers: bool = ..., sessions: _Optional[int] = ..., warming_up: bool = ..., waiting: _Optional[_Union[WaitingStatus, _Mapping]] = ..., away: _Optional[_Iterable[_Union[AwayWorker, _Mapping]]] = ..., listens: _Optional[str] = ..., insecure: bool = ..., internal: _Optional[str] = ..., callers: _Optional[_Union[CallersStatus, _Mapping]] = ..., plain: bool = ..., metrics: _Optional[str] = ..., certificate: _Optional[_Union[CertificateStatus, _Mapping]] = ...) -> None: ...

class CertificateStatus(_message.Message):
    __slots__ = ("left_seconds", "names", "asks_clients", "error")
    LEFT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    ASKS_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    left_seconds: float
    names: _containers.RepeatedScalarFieldContainer[str]
    asks_clients: bool
    error: str
    def __init__(self, left_seconds: _Optional[float] = ..., names: _Optional[_Iterable[str]] = ..., asks_clients: bool = ..., error: _Optional[str] = ...) -> None: ...

class CallersStatus(_message.Message):
    __slots__ = ("asked", "keys", "error", "refused", "unchecked")
    ASKED_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    UNCHECKED_FIELD_NUMBER: _ClassVar[int]
    asked: bool
    keys: int
    error: str
    refused: int
    unchecked: int
    def __init__(self, asked: bool = ..., keys: _Optional[int] = ..., error: _Optional[str] = ..., refused: _Optional[int] = ..., unchecked: _Optional[int] = ...) -> None: ...

class WaitingStatus(_message.Message):
    __slots__ = ("requests", "bytes", "longest_seconds")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    LONGEST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    requests: int
    bytes: int
    longest_seconds: float
    def __init__(self, requests: _Optional[int] = ..., bytes: _Optional[int] = ..., longest_seconds: _Optional[float] = ...) -> None: ...

class AwayWorker(_message.Message):
    __slots__ = ("worker_id", "role", "away_seconds", "expected", "deaths", "crash_looping")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    AWAY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    DEATHS_FIELD_NUMBER: _ClassVar[int]
    CRASH_LOOPING_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    role: Role
    away_seconds: float
    expected: bool
    deaths: int
    crash_looping: bool
    def __init__(self, worker_id: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., away_seconds: _Optional[float] = ..., expected: bool = ..., deaths: _Optional[int] = ..., crash_looping: bool = ...) -> None: ...

class AccuracyStatus(_message.Message):
    __slots__ = ("ttft", "itl", "cached_tokens")
    TTFT_FIELD_NUMBER: _ClassVar[int]
    ITL_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ttft: PredictionErrors
    itl: PredictionErrors
    cached_tokens: PredictionErrors
    def __init__(self, ttft: _Optional[_Union[PredictionErrors, _Mapping]] = ..., itl: _Optional[_Union[PredictionErrors, _Mapping]] = ..., cached_tokens: _Optional[_Union[PredictionErrors, _Mapping]] = ...) -> None: ...

class PredictionErrors(_message.Message):
    __slots__ = ("samples", "ratio", "bias")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    RATIO_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    samples: int
    ratio: ErrorQuantiles
    bias: float
    def __init__(self, samples: _Optional[int] = ..., ratio: _Optional[_Union[ErrorQuantiles, _Mapping]] = ..., bias: _Optional[float] = ...) -> None: ...

class ClassStatus(_message.Message):
    __slots__ = ("name", "ttft_seconds", "itl_seconds", "placed", "rejected", "started", "in_time", "finished", "steady", "answer_tokens", "patience_seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TTFT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ITL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PLACED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    IN_TIME_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    STEADY_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    ttft_seconds: float
    itl_seconds: float
    placed: int
    rejected: int
    started: int
    in_time: int
    finished: int
    steady: int
    answer_tokens: float
    patience_seconds: float
    def __init__(self, name: _Optional[str] = ..., ttft_seconds: _Optional[float] = ..., itl_seconds: _Optional[float] = ..., placed: _Optional[int] = ..., rejected: _Optional[int] = ..., started: _Optional[int] = ..., in_time: _Optional[int] = ..., finished: _Optional[int] = ..., steady: _Optional[int] = ..., answer_tokens: _Optional[float] = ..., patience_seconds: _Optional[float] = ...) -> None: ...

class TenantStatus(_message.Message):
    __slots__ = ("name", "used_seconds", "excess")
    NAME_FIELD_NUMBER: _ClassVar[int]
    USED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXCESS_FIELD_NUMBER: _ClassVar[int]
    name: str
    used_seconds: float
    excess: float
    def __init__(self, name: _Optional[str] = ..., used_seconds: _Optional[float] = ..., excess: _Optional[float] = ...) -> None: ...

class RelayStatus(_message.Message):
    __slots__ = ("messages", "tokens", "placed", "moved", "predicted_hit_tokens", "actual_hit_tokens")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PLACED_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACTUAL_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    messages: int
    tokens: int
    placed: int
    moved: int
    predicted_hit_tokens: int
    actual_hit_tokens: int
    def __init__(self, messages: _Optional[int] = ..., tokens: _Optional[int] = ..., placed: _Optional[int] = ..., moved: _Optional[int] = ..., predicted_hit_tokens: _Optional[int] = ..., actual_hit_tokens: _Optional[int] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("member", "load", "serving", "reason", "report_age_seconds", "requests_in_flight", "cached_grains", "index_age_seconds", "watch_gaps", "predicted_hit_tokens", "actual_hit_tokens")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REPORT_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    CACHED_GRAINS_FIELD_NUMBER: _ClassVar[int]
    INDEX_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WATCH_GAPS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACTUAL_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    member: RegisterRequest
    load: LoadReport
    serving: bool
    reason: str
    report_age_seconds: float
    requests_in_flight: int
    cached_grains: int
    index_age_seconds: float
    watch_gaps: int
    predicted_hit_tokens: int
    actual_hit_tokens: int
    def __init__(self, member: _Optional[_Union[RegisterRequest, _Mapping]] = ..., load: _Optional[_Union[LoadReport, _Mapping]] = ..., serving: bool = ..., reason: _Optional[str] = ..., report_age_seconds: _Optional[float] = ..., requests_in_flight: _Optional[int] = ..., cached_grains: _Optional[int] = ..., index_age_seconds: _Optional[float] = ..., watch_gaps: _Optional[int] = ..., predicted_hit_tokens: _Optional[int] = ..., actual_hit_tokens: _Optional[int] = ...) -> None: ...

class DiagnoseRequest(_message.Message):
    __slots__ = ("measure_memory",)
    MEASURE_MEMORY_FIELD_NUMBER: _ClassVar[int]
    measure_memory: bool
    def __init__(self, measure_memory: bool = ...) -> None: ...

class DiagnoseResponse(_message.Message):
    __slots__ = ("unix_seconds", "machine", "versions", "wire_version", "memlock_bytes", "open_files_limit", "open_files", "cpus", "threads", "run_dir", "listening", "secrets_mode", "store", "checks_content", "memory_bytes_per_second", "required_transport", "checkpoint", "choices", "tls_ports")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ChoicesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MEMLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPEN_FILES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    OPEN_FILES_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    RUN_DIR_FIELD_NUMBER: _ClassVar[int]
    LISTENING_FIELD_NUMBER: _ClassVar[int]
    SECRETS_MODE_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    CHECKS_CONTENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    TLS_PORTS_FIELD_NUMBER: _ClassVar[int]
    unix_seconds: float
    machine: str
    versions: _containers.ScalarMap[str, str]
    wire_version: int
    memlock_bytes: int
    open_files_limit: int
    open_files: int
    cpus: int
    threads: int
    run_dir: Folder
    listening: _containers.RepeatedScalarFieldContainer[str]
    secrets_mode: int
    store: StoreAnswer
    checks_content: bool
    memory_bytes_per_second: float
    required_transport: str
    checkpoint: CheckpointReview
    choices: _containers.ScalarMap[str, str]
    tls_ports: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, unix_seconds: _Optional[float] = ..., machine: _Optional[str] = ..., versions: _Optional[_Mapping[str, str]] = ..., wire_version: _Optional[int] = ..., memlock_bytes: _Optional[int] = ..., open_files_limit: _Optional[int] = ..., open_files: _Optional[int] = ..., cpus: _Optional[int] = ..., threads: _Optional[int] = ..., run_dir: _Optional[_Union[Folder, _Mapping]] = ..., listening: _Optional[_Iterable[str]] = ..., secrets_mode: _Optional[int] = ..., store: _Optional[_Union[StoreAnswer, _Mapping]] = ..., checks_content: bool = ..., memory_bytes_per_second: _Optional[float] = ..., required_transport: _Optional[str] = ..., checkpoint: _Optional[_Union[CheckpointReview, _Mapping]] = ..., choices: _Optional[_Mapping[str, str]] = ..., tls_ports: _Optional[_Iterable[int]] = ...) -> None: ...

class CheckpointReview(_message.Message):
    __slots__ = ("ignored", "unknown")
    IGNORED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    ignored: _containers.RepeatedCompositeFieldContainer[CheckpointNote]
    unknown: _containers.RepeatedCompositeFieldContainer[CheckpointNote]
    def __init__(self, ignored: _Optional[_Iterable[_Union[CheckpointNote, _Mapping]]] = ..., unknown: _Optional[_Iterable[_Union[CheckpointNote, _Mapping]]] = ...) -> None: ...

class CheckpointNote(_message.Message):
    __slots__ = ("file", "why", "keys")
    FILE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    file: str
    why: str
    keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, file: _Optional[str] = ..., why: _Optional[str] = ..., keys: _Optional[_Iterable[str]] = ...) -> None: ...

class Folder(_message.Message):
    __slots__ = ("path", "file_system", "num_bytes", "free_bytes", "mode")
    PATH_FIELD_NUMBER: _ClassVar[int]
    FILE_SYSTEM_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    path: str
    file_system: str
    num_bytes: int
    free_bytes: int
    mode: int
    def __init__(self, path: _Optional[str] = ..., file_system: _Optional[str] = ..., num_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., mode: _Optional[int] = ...) -> None: ...

class StoreAnswer(_message.Message):
    __slots__ = ("address", "seconds", "problem")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    address: str
    seconds: float
    problem: str
    def __init__(self, address: _Optional[str] = ..., seconds: _Optional[float] = ..., problem: _Optional[str] = ...) -> None: ...

class ApplyPolicyRequest(_message.Message):
    __slots__ = ("text", "source", "canary_share", "by")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CANARY_SHARE_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    text: str
    source: str
    canary_share: float
    by: str
    def __init__(self, text: _Optional[str] = ..., source: _Optional[str] = ..., canary_share: _Optional[float] = ..., by: _Optional[str] = ...) -> None: ...

class ReloadPolicyRequest(_message.Message):
    __slots__ = ("by",)
    BY_FIELD_NUMBER: _ClassVar[int]
    by: str
    def __init__(self, by: _Optional[str] = ...) -> None: ...

class RollBackPolicyRequest(_message.Message):
    __slots__ = ("reason", "by")
    REASON_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    reason: str
    by: str
    def __init__(self, reason: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class PolicyHistoryRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PolicyHistoryResponse(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[PastPolicyChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[PastPolicyChange, _Mapping]]] = ...) -> None: ...

class PastPolicyChange(_message.Message):
    __slots__ = ("unix_seconds", "generation", "name", "digest", "why", "by", "address")
    UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    unix_seconds: float
    generation: int
    name: str
    digest: str
    why: str
    by: str
    address: str
    def __init__(self, unix_seconds: _Optional[float] = ..., generation: _Optional[int] = ..., name: _Optional[str] = ..., digest: _Optional[str] = ..., why: _Optional[str] = ..., by: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class PolicyChange(_message.Message):
    __slots__ = ("outcome", "generation", "warnings", "changes")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    outcome: PolicyOutcome
    generation: PolicyGeneration
    warnings: _containers.RepeatedScalarFieldContainer[str]
    changes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, outcome: _Optional[_Union[PolicyOutcome, str]] = ..., generation: _Optional[_Union[PolicyGeneration, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., changes: _Optional[_Iterable[str]] = ...) -> None: ...

class PolicyGeneration(_message.Message):
    __slots__ = ("number", "name", "digest", "source", "unix_seconds", "text")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    number: int
    name: str
    digest: str
    source: str
    unix_seconds: float
    text: str
    def __init__(self, number: _Optional[int] = ..., name: _Optional[str] = ..., digest: _Optional[str] = ..., source: _Optional[str] = ..., unix_seconds: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...

class PolicyStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PolicyStatusResponse(_message.Message):
    __slots__ = ("active", "previous", "canary", "trial", "shadow", "reload", "last_change", "traffic", "regret", "file", "store_away")
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    TRIAL_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    RELOAD_FIELD_NUMBER: _ClassVar[int]
    LAST_CHANGE_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    REGRET_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    STORE_AWAY_FIELD_NUMBER: _ClassVar[int]
    active: PolicyGeneration
    previous: PolicyGeneration
    canary: PolicyGeneration
    trial: CanaryStatus
    shadow: ShadowStatus
    reload: ReloadStatus
    last_change: str
    traffic: _containers.RepeatedCompositeFieldContainer[GenerationTraffic]
    regret: RegretStatus
    file: str
    store_away: bool
    def __init__(self, active: _Optional[_Union[PolicyGeneration, _Mapping]] = ..., previous: _Optional[_Union[PolicyGeneration, _Mapping]] = ..., canary: _Optional[_Union[PolicyGeneration, _Mapping]] = ..., trial: _Optional[_Union[CanaryStatus, _Mapping]] = ..., shadow: _Optional[_Union[ShadowStatus, _Mapping]] = ..., reload: _Optional[_Union[ReloadStatus, _Mapping]] = ..., last_change: _Optional[str] = ..., traffic: _Optional[_Iterable[_Union[GenerationTraffic, _Mapping]]] = ..., regret: _Optional[_Union[RegretStatus, _Mapping]] = ..., file: _Optional[str] = ..., store_away: bool = ...) -> None: ...

class CanaryStatus(_message.Message):
    __slots__ = ("traffic_share", "age_seconds", "duration_seconds", "min_requests", "max_ttft_p95_ratio", "max_error_ratio", "canary", "baseline", "verdict")
    TRAFFIC_SHARE_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MIN_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_TTFT_P95_RATIO_FIELD_NUMBER: _ClassVar[int]
    MAX_ERROR_RATIO_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    traffic_share: float
    age_seconds: float
    duration_seconds: float
    min_requests: int
    max_ttft_p95_ratio: float
    max_error_ratio: float
    canary: TrafficFigures
    baseline: TrafficFigures
    verdict: str
    def __init__(self, traffic_share: _Optional[float] = ..., age_seconds: _Optional[float] = ..., duration_seconds: _Optional[float] = ..., min_requests: _Optional[int] = ..., max_ttft_p95_ratio: _Optional[float] = ..., max_error_ratio: _Optional[float] = ..., canary: _Optional[_Union[TrafficFigures, _Mapping]] = ..., baseline: _Optional[_Union[TrafficFigures, _Mapping]] = ..., verdict: _Optional[str] = ...) -> None: ...

class TrafficFigures(_message.Message):
    __slots__ = ("requests", "errors", "ttft_p95_seconds")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    TTFT_P95_SECONDS_FIELD_NUMBER: _ClassVar[int]
    requests: int
    errors: int
    ttft_p95_seconds: float
    def __init__(self, requests: _Optional[int] = ..., errors: _Optional[int] = ..., ttft_p95_seconds: _Optional[float] = ...) -> None: ...

class GenerationTraffic(_message.Message):
    __slots__ = ("number", "placed", "in_flight", "errors")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PLACED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    number: int
    placed: int
    in_flight: int
    errors: int
    def __init__(self, number: _Optional[int] = ..., placed: _Optional[int] = ..., in_flight: _Optional[int] = ..., errors: _Optional[int] = ...) -> None: ...

class ShadowStatus(_message.Message):
    __slots__ = ("sample_share", "evaluated", "disagreed", "ttft_difference_seconds", "price_difference_seconds", "failed")
    SAMPLE_SHARE_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    DISAGREED_FIELD_NUMBER: _ClassVar[int]
    TTFT_DIFFERENCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PRICE_DIFFERENCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    sample_share: float
    evaluated: int
    disagreed: int
    ttft_difference_seconds: float
    price_difference_seconds: float
    failed: int
    def __init__(self, sample_share: _Optional[float] = ..., evaluated: _Optional[int] = ..., disagreed: _Optional[int] = ..., ttft_difference_seconds: _Optional[float] = ..., price_difference_seconds: _Optional[float] = ..., failed: _Optional[int] = ...) -> None: ...

class ReloadStatus(_message.Message):
    __slots__ = ("last_reload_successful", "last_reload_success_timestamp_seconds", "error", "attempts", "failures")
    LAST_RELOAD_SUCCESSFUL_FIELD_NUMBER: _ClassVar[int]
    LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    last_reload_successful: bool
    last_reload_success_timestamp_seconds: float
    error: str
    attempts: int
    failures: int
    def __init__(self, last_reload_successful: bool = ..., last_reload_success_timestamp_seconds: _Optional[float] = ..., error: _Optional[str] = ..., attempts: _Optional[int] = ..., failures: _Optional[int] = ...) -> None: ...

class RegretStatus(_message.Message):
    __slots__ = ("evaluated", "mean_seconds", "p90_seconds", "mean_ttft_error_seconds")
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    MEAN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    P90_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEAN_TTFT_ERROR_SECONDS_FIELD_NUMBER: _ClassVar[int]
    evaluated: int
    mean_seconds: float
    p90_seconds: float
    mean_ttft_error_seconds: float
    def __init__(self, evaluated: _Optional[int] = ..., mean_seconds: _Optional[float] = ..., p90_seconds: _Optional[float] = ..., mean_ttft_error_seconds: _Optional[float] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id", "max_candidates")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    max_candidates: int
    def __init__(self, request_id: _Optional[str] = ..., max_candidates: _Optional[int] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("request_id", "generation", "service_class", "prompt_tokens", "predicted_output_tokens", "age_seconds", "tries", "outcome")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRIES_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    generation: PolicyGeneration
    service_class: str
    prompt_tokens: int
    predicted_output_tokens: float
    age_seconds: float
    tries: _containers.RepeatedCompositeFieldContainer[ExplainedTry]
    outcome: RequestOutcome
    def __init__(self, request_id: _Optional[str] = ..., generation: _Optional[_Union[PolicyGeneration, _Mapping]] = ..., service_class: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., predicted_output_tokens: _Optional[float] = ..., age_seconds: _Optional[float] = ..., tries: _Optional[_Iterable[_Union[ExplainedTry, _Mapping]]] = ..., outcome: _Optional[_Union[RequestOutcome, _Mapping]] = ...) -> None: ...

class ExplainedTry(_message.Message):
    __slots__ = ("candidates", "num_candidates", "left_out", "rule", "sentence", "margin_seconds", "predicted_ttft_seconds", "predicted_itl_seconds", "due_seconds", "regret_seconds", "best_afterwards", "num_tied")
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    NUM_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    MARGIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_ITL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REGRET_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BEST_AFTERWARDS_FIELD_NUMBER: _ClassVar[int]
    NUM_TIED_FIELD_NUMBER: _ClassVar[int]
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    num_candidates: int
    left_out: _containers.RepeatedCompositeFieldContainer[LeftOut]
    rule: str
    sentence: str
    margin_seconds: float
    predicted_ttft_seconds: float
    predicted_itl_seconds: float
    due_seconds: float
    regret_seconds: float
    best_afterwards: str
    num_tied: int
    def __init__(self, candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., num_candidates: _Optional[int] = ..., left_out: _Optional[_Iterable[_Union[LeftOut, _Mapping]]] = ..., rule: _Optional[str] = ..., sentence: _Optional[str] = ..., margin_seconds: _Optional[float] = ..., predicted_ttft_seconds: _Optional[float] = ..., predicted_itl_seconds: _Optional[float] = ..., due_seconds: _Optional[float] = ..., regret_seconds: _Optional[float] = ..., best_afterwards: _Optional[str] = ..., num_tied: _Optional[int] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("decode", "prefill", "source", "cached_tokens", "price_seconds", "terms", "chosen")
    DECODE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRICE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    decode: str
    prefill: str
    source: str
    cached_tokens: int
    price_seconds: float
    terms: _containers.RepeatedCompositeFieldContainer[PriceTerm]
    chosen: bool
    def __init__(self, decode: _Optional[str] = ..., prefill: _Optional[str] = ..., source: _Optional[str] = ..., cached_tokens: _Optional[int] = ..., price_seconds: _Optional[float] = ..., terms: _Optional[_Iterable[_Union[PriceTerm, _Mapping]]] = ..., chosen: bool = ...) -> None: ...

class PriceTerm(_message.Message):
    __slots__ = ("name", "seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    seconds: float
    def __init__(self, name: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class LeftOut(_message.Message):
    __slots__ = ("worker", "reason")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    worker: str
    reason: str
    def __init__(self, worker: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ObserveRequest(_message.Message):
    __slots__ = ("window_seconds", "next_seconds", "start_seconds")
    WINDOW_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    START_SECONDS_FIELD_NUMBER: _ClassVar[int]
    window_seconds: float
    next_seconds: float
    start_seconds: float
    def __init__(self, window_seconds: _Optional[float] = ..., next_seconds: _Optional[float] = ..., start_seconds: _Optional[float] = ...) -> None: ...

class ObserveResponse(_message.Message):
    __slots__ = ("watched_seconds", "requests", "workers", "waiting")
    WATCHED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    watched_seconds: float
    requests: _containers.RepeatedCompositeFieldContainer[SeenRequest]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    waiting: int
    def __init__(self, watched_seconds: _Optional[float] = ..., requests: _Optional[_Iterable[_Union[SeenRequest, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., waiting: _Optional[int] = ...) -> None: ...

class SeenRequest(_message.Message):
    __slots__ = ("age_seconds", "prompt_tokens", "cached_tokens", "output_tokens", "target_ttft_seconds", "target_itl_seconds", "reusable_tokens", "ttft_seconds", "itl_seconds", "lost")
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TARGET_TTFT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TARGET_ITL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REUSABLE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TTFT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ITL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    age_seconds: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: float
    target_ttft_seconds: float
    target_itl_seconds: float
    reusable_tokens: _containers.RepeatedScalarFieldContainer[int]
    ttft_seconds: float
    itl_seconds: float
    lost: bool
    def __init__(self, age_seconds: _Optional[float] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., output_tokens: _Optional[float] = ..., target_ttft_seconds: _Optional[float] = ..., target_itl_seconds: _Optional[float] = ..., reusable_tokens: _Optional[_Iterable[int]] = ..., ttft_seconds: _Optional[float] = ..., itl_seconds: _Optional[float] = ..., lost: bool = ...) -> None: ...

class RequestOutcome(_message.Message):
    __slots__ = ("state", "error", "ttft_seconds", "cached_tokens", "tokens", "moved", "total_seconds")
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TTFT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    state: str
    error: str
    ttft_seconds: float
    cached_tokens: int
    tokens: int
    moved: int
    total_seconds: float
    def __init__(self, state: _Optional[str] = ..., error: _Optional[str] = ..., ttft_seconds: _Optional[float] = ..., cached_tokens: _Optional[int] = ..., tokens: _Optional[int] = ..., moved: _Optional[int] = ..., total_seconds: _Optional[float] = ...) -> None: ...

class SlowRequestsRequest(_message.Message):
    __slots__ = ("window_seconds", "max_requests")
    WINDOW_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    window_seconds: float
    max_requests: int
    def __init__(self, window_seconds: _Optional[float] = ..., max_requests: _Optional[int] = ...) -> None: ...

class SlowRequestsResponse(_message.Message):
    __slots__ = ("requests", "looked_at", "remembered")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    LOOKED_AT_FIELD_NUMBER: _ClassVar[int]
    REMEMBERED_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[SlowRequest]
    looked_at: int
    remembered: bool
    def __init__(self, requests: _Optional[_Iterable[_Union[SlowRequest, _Mapping]]] = ..., looked_at: _Optional[int] = ..., remembered: bool = ...) -> None: ...

class SlowRequest(_message.Message):
    __slots__ = ("request_id", "age_seconds", "outcome", "lateness", "service_class", "target_ttft_seconds", "target_itl_seconds", "itl_seconds", "prompt_tokens", "generation", "decode", "prefill", "source", "phases")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    LATENESS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    TARGET_TTFT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TARGET_ITL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ITL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    age_seconds: float
    outcome: RequestOutcome
    lateness: float
    service_class: str
    target_ttft_seconds: float
    target_itl_seconds: float
    itl_seconds: float
    prompt_tokens: int
    generation: int
    decode: str
    prefill: str
    source: str
    phases: RequestPhases
    def __init__(self, request_id: _Optional[str] = ..., age_seconds: _Optional[float] = ..., outcome: _Optional[_Union[RequestOutcome, _Mapping]] = ..., lateness: _Optional[float] = ..., service_class: _Optional[str] = ..., target_ttft_seconds: _Optional[float] = ..., target_itl_seconds: _Optional[float] = ..., itl_seconds: _Optional[float] = ..., prompt_tokens: _Optional[int] = ..., generation: _Optional[int] = ..., decode: _Optional[str] = ..., prefill: _Optional[str] = ..., source: _Optional[str] = ..., phases: _Optional[_Union[RequestPhases, _Mapping]] = ...) -> None: ...

class RequestPhases(_message.Message):
    __slots__ = ("router_seconds", "queue_seconds", "prefill_seconds", "transfer_seconds", "decode_seconds")
    ROUTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    router_seconds: float
    queue_seconds: float
    prefill_seconds: float
    transfer_seconds: float
    decode_seconds: float
    def __init__(self, router_seconds: _Optional[float] = ..., queue_seconds: _Optional[float] = ..., prefill_seconds: _Optional[float] = ..., transfer_seconds: _Optional[float] = ..., decode_seconds: _Optional[float] = ...) -> None: ...
