"""Protobuf messages to the values of `cluster/types.py`, and back. Knows the wire, no policy.

What a peer sent wrongly is an `InvalidRequest` that names the field.
"""

from collections.abc import Iterable, Sequence

from cluster.block_hash import HASH_BYTES, hash_key, split_hashes
from cluster.errors import InvalidRequest
from cluster.pair_codec import pair_report_from_pb, pair_report_to_pb
from cluster.params_codec import params_from_pb, params_to_pb
from cluster.prediction_codec import (
    backlog_from_pb,
    backlog_to_pb,
    decode_cost_from_pb,
    decode_cost_to_pb,
    due_s_from_pb,
    errors_from_pb,
    errors_to_pb,
    links_from_pb,
    links_to_pb,
    prefill_cost_from_pb,
    prefill_cost_to_pb,
    share_from_pb,
)
from cluster.types import (
    CacheChange,
    ComputeRequest,
    GrainHash,
    LoadReport,
    LostAnswer,
    SampledToken,
    TokenLogprob,
    WorkerAddress,
)
from cluster.wire_version import NAMED_SINCE
from cluster.worker_codec import (
    address_to_pb,
    drain_report_from_pb,
    drain_report_to_pb,
)
from penstock.v1 import inference_pb2, worker_pb2

# Requests as workers see them


def decode_request_to_bytes(
    request: ComputeRequest,
    *,
    model: str,
    tenant: str,
    cache_scope: str,
    resume_secret: bytes = b"",
) -> bytes:
    """A `DecodeRequest` as far as it is known before it is placed, to be followed by
    `placement_to_bytes`: serialised messages that follow each other are one. A long prompt takes so
    long that it is done once, and not in an event loop. The hash key does not travel: each end
    derives it from tenant and scope."""
    return worker_pb2.DecodeRequest(
        request_id=request.request_id,
        model=model,
        prompt_token_ids=request.prompt_ids,
        params=params_to_pb(request.params),
        tenant=tenant,
        cache_scope=cache_scope,
        resume_secret=resume_secret,
    ).SerializeToString()


def placement_to_bytes(
    decode: WorkerAddress,
    *,
    prefill: WorkerAddress | None,
    source: WorkerAddress | None = None,
    num_source_tokens: int = 0,
    emitted: tuple[tuple[int, ...], ...] = (),
    due_s: float = 0.0,
    router_s: float = 0.0,
) -> bytes:
    """The rest of a `DecodeRequest`: what is told anew with every try."""
    to_pb = _named_to_pb if decode.fingerprint.wire_version >= NAMED_SINCE else address_to_pb
    return worker_pb2.DecodeRequest(
        prefill=to_pb(prefill) if prefill else None,
        source=to_pb(source) if source else None,
        source_tokens=num_source_tokens,
        emitted=_emitted_to_pb(emitted),
        due_seconds=due_s,
        router_seconds=router_s,
    ).SerializeToString()


def trace_to_bytes(traceparent: str, tracestate: str) -> bytes:
    """The part of a `DecodeRequest` that a traced one has besides."""
    return worker_pb2.DecodeRequest(
        traceparent=traceparent, tracestate=tracestate
    ).SerializeToString()


def reattach_to_bytes(lost: LostAnswer, *, tenant: str) -> bytes:
    """A `Reattach`."""
    answer = inference_pb2.AttachRequest(
        request_id=lost.request_id,
        resume_secret=lost.resume_secret,
        next_index=lost.next_index,
        epoch=lost.epoch,
    )
    return worker_pb2.Reattach(tenant=tenant, answer=answer).SerializeToString()


def compute_request_from_pb(
    message: worker_pb2.DecodeRequest, *, hash_secret: bytes, model_digest: str
) -> ComputeRequest:
    """Reads what there is to compute; who else takes part is named beside it."""
    params = params_from_pb(message.params)
    num_choices = params.num_choices
    if not message.request_id or not message.prompt_token_ids or num_choices < 1:
        raise InvalidRequest("request_id", "A request id, a prompt and n are required.")
    if len(message.emitted) not in (0, num_choices):
        raise InvalidRequest(
            "emitted", f"'emitted' holds {len(message.emitted)} choices, the request {num_choices}."
        )
    return ComputeRequest(
        request_id=message.request_id,
        prompt_ids=list(message.prompt_token_ids),
        params=params,
        hash_key=hash_key(
            hash_secret,
            tenant=message.tenant,
            cache_scope=message.cache_scope,
            model_digest=model_digest,
        ),
        emitted=tuple(tuple(choice.token_ids) for choice in message.emitted),
        due_s=due_s_from_pb(message.due_seconds),
    )


def _named_to_pb(worker: WorkerAddress) -> worker_pb2.WorkerAddress:
    return worker_pb2.WorkerAddress(worker_id=worker.worker_id, incarnation=worker.incarnation)


def _emitted_to_pb(emitted: Sequence[Sequence[int]]) -> list[worker_pb2.EmittedTokens]:
    return [worker_pb2.EmittedTokens(token_ids=ids) for ids in emitted]


# Tokens


def logprob_to_pb(logprob: TokenLogprob) -> inference_pb2.TokenLogprob:
    return inference_pb2.TokenLogprob(
        token_id=logprob.token_id, logprob=logprob.logprob or 0.0, top=_top_to_pb(logprob)
    )


def logprob_from_pb(message: inference_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(
        token_id=message.token_id, logprob=message.logprob, top=_top_from_pb(message.top)
    )


def prompt_logprob_to_pb(logprob: TokenLogprob) -> inference_pb2.PromptLogprob:
    return inference_pb2.PromptLogprob(
        token_id=logprob.token_id, logprob=logprob.logprob, top=_top_to_pb(logprob)
    )


def prompt_logprob_from_pb(message: inference_pb2.PromptLogprob) -> TokenLogprob:
    return TokenLogprob(
        token_id=message.token_id,
        logprob=message.logprob if message.HasField("logprob") else None,
        top=_top_from_pb(message.top),
    )


def sampled_to_pb(token: SampledToken) -> worker_pb2.SampledToken:
    logprob = logprob_to_pb(token.logprob) if token.logprob else None
    return worker_pb2.SampledToken(token_id=token.token_id, logprob=logprob)


def sampled_from_pb(message: worker_pb2.SampledToken) -> SampledToken:
    logprob = logprob_from_pb(message.logprob) if message.HasField("logprob") else None
    return SampledToken(token_id=message.token_id, logprob=logprob)


def _top_to_pb(logprob: TokenLogprob) -> list[inference_pb2.TopLogprob]:
    return [inference_pb2.TopLogprob(token_id=i, logprob=value) for i, value in logprob.top]


def _top_from_pb(top: Iterable[inference_pb2.TopLogprob]) -> tuple[tuple[int, float], ...]:
    return tuple((item.token_id, item.logprob) for item in top)


# Load reports and cache events


def load_report_to_pb(report: LoadReport) -> worker_pb2.LoadReport:
    return worker_pb2.LoadReport(
        num_running=report.num_running,
        num_waiting=report.num_waiting,
        queued_tokens=report.num_queued_tokens,
        running_context_tokens=report.num_context_tokens,
        num_free_blocks=report.num_free_blocks,
        num_unused_blocks=report.num_unused_blocks,
        tail_reuse=report.tail_reuse,
        num_blocks=report.num_blocks,
        num_quarantined_blocks=report.num_quarantined_blocks,
        claimed_tokens=report.num_claimed_tokens,
        backlog=backlog_to_pb(report.backlog),
        prefill=prefill_cost_to_pb(report.prefill_cost),
        decode=decode_cost_to_pb(report.decode_cost),
        prefill_error=errors_to_pb(report.prefill_error),
        decode_error=errors_to_pb(report.decode_error),
        serving=report.is_serving,
        draining=report.is_draining,
        drain=drain_report_to_pb(report.drain) if report.drain is not None else None,
        open_calls=report.num_open_calls,
        step_age_seconds=report.step_age_s,
        request_ids=report.request_ids,
        counters=report.counters,
        pairs=map(pair_report_to_pb, report.pairs or ()),
        pairs_left_out=report.pairs is None,
        links=links_to_pb(report.links or ()),
        links_left_out=report.links is None,
    )


def load_report_from_pb(message: worker_pb2.LoadReport) -> LoadReport:
    """Raises InvalidRequest for what no worker can mean."""
    return LoadReport(
        num_running=message.num_running,
        num_waiting=message.num_waiting,
        num_queued_tokens=message.queued_tokens,
        num_context_tokens=message.running_context_tokens,
        num_free_blocks=message.num_free_blocks,
        num_unused_blocks=message.num_unused_blocks,
        tail_reuse=share_from_pb("tail_reuse", message.tail_reuse),
        num_blocks=message.num_blocks,
        num_quarantined_blocks=message.num_quarantined_blocks,
        num_claimed_tokens=message.claimed_tokens,
        backlog=backlog_from_pb(message.backlog),
        prefill_cost=prefill_cost_from_pb(message.prefill),
        decode_cost=decode_cost_from_pb(message.decode),
        prefill_error=errors_from_pb("prefill_error", message),
        decode_error=errors_from_pb("decode_error", message),
        is_serving=message.serving,
        is_draining=message.draining,
        drain=drain_report_from_pb(message.drain) if message.HasField("drain") else None,
        num_open_calls=message.open_calls,
        step_age_s=message.step_age_seconds,
        request_ids=tuple(message.request_ids),
        counters=dict(message.counters),
        pairs=None if message.pairs_left_out else tuple(map(pair_report_from_pb, message.pairs)),
        links=None if message.links_left_out else links_from_pb(message.links),
    )


def hashes_to_bytes(hashes: Iterable[GrainHash]) -> bytes:
    return b"".join(hashes)


def hashes_from_bytes(field: str, packed: bytes) -> tuple[GrainHash, ...]:
    if len(packed) % HASH_BYTES:
        raise InvalidRequest(
            field, f"'{field}' has {len(packed)} bytes: not a multiple of {HASH_BYTES}."
        )
    return split_hashes(packed)


def cache_change_to_pb(change: CacheChange) -> worker_pb2.CacheEvent:
    return worker_pb2.CacheEvent(
        stored=hashes_to_bytes(change.stored), evicted=hashes_to_bytes(change.evicted)
    )


def cache_change_from_pb(message: worker_pb2.CacheEvent) -> CacheChange:
    return CacheChange(
        stored=hashes_from_bytes("stored", message.stored),
        evicted=hashes_from_bytes("evicted", message.evicted),
    )
