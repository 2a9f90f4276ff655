"""What travels comes out as it went in, through real bytes."""

import math
import struct
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from cluster import codec, params_codec, worker_codec
from cluster.errors import InvalidRequest, UnsupportedFeature
from cluster.types import (
    CacheChange,
    ComputeRequest,
    DecodeCost,
    Direction,
    DrainReport,
    ErrorQuantiles,
    Fingerprint,
    GenerationParams,
    GrainHash,
    HistogramReport,
    Incarnation,
    KvLayout,
    LinkCost,
    LoadReport,
    Member,
    PairFailures,
    PairReport,
    PrefillCost,
    Role,
    SampledToken,
    SamplingParams,
    TokenLogprob,
    WorkerAddress,
    WorkerId,
)
from cluster.wire_version import NAMED_SINCE
from penstock.v1 import worker_pb2
from tests.cluster.cluster_samples import FINGERPRINT, member

M = TypeVar("M", bound=Message)

counts = st.integers(0, 2**32 - 1)
ids = counts
float32s = st.floats(width=32, allow_nan=False)
floats = st.floats(allow_nan=False)
names = st.text(st.characters(codec="utf-8"), max_size=20)
filled = names.filter(bool)
id_tuples = st.lists(ids, max_size=8).map(tuple)
tops = st.lists(st.tuples(ids, float32s), max_size=4).map(tuple)
hashes = st.binary(min_size=16, max_size=16).map(GrainHash)
hash_tuples = st.lists(hashes, max_size=6).map(tuple)

sampling = st.builds(
    SamplingParams,
    seed=st.integers(0, 2**64 - 1),
    temperature=float32s,
    top_k=counts,
    top_p=float32s,
    min_p=float32s,
    frequency_penalty=float32s,
    presence_penalty=float32s,
    repetition_penalty=float32s,
    logit_bias=st.dictionaries(ids, float32s, max_size=5).map(lambda d: tuple(sorted(d.items()))),
    allowed_token_ids=id_tuples,
    bad_token_ids=id_tuples,
    bad_word_ids=st.lists(id_tuples, max_size=3).map(tuple),
    min_tokens=counts,
    stop_token_ids=id_tuples,
    num_logprobs=st.none() | counts,
    num_prompt_logprobs=st.none() | counts,
)
params = st.builds(
    GenerationParams,
    sampling=sampling,
    max_tokens=counts,
    stop_strings=st.lists(names, max_size=3).map(tuple),
    include_stop_string=st.booleans(),
    skip_special_tokens=st.booleans(),
    num_choices=st.integers(1, 16),
    priority=st.integers(-(2**31), 2**31 - 1),
)
shards = st.builds(
    KvLayout,
    num_layers=st.just(3),
    num_blocks=counts,
    block_size=counts,
    num_kv_heads=st.integers(1, 8),
    head_dim=counts,
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    num_planes=st.integers(1, 2),
    first_head=st.integers(0, 8),
    total_heads=st.just(16),
    windows=st.lists(st.none() | st.integers(1, 2**32 - 1), min_size=3, max_size=3).map(tuple),
)
layouts = shards | st.builds(
    KvLayout,
    num_layers=counts,
    num_blocks=counts,
    block_size=counts,
    num_kv_heads=counts,
    head_dim=counts,
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
fingerprints = st.builds(
    Fingerprint,
    model_digest=names,
    tokenizer_digest=names,
    template_digest=names,
    hash_grain=counts,
    layout=layouts,
    wire_version=counts,
    wire_dtype=st.none() | filled,
)
addresses = st.builds(
    WorkerAddress,
    worker_id=filled.map(WorkerId),
    incarnation=filled.map(Incarnation),
    address=filled,
    transports=st.dictionaries(names, names, max_size=3),
    fingerprint=fingerprints,
)
members = st.builds(
    Member,
    worker=addresses,
    role=st.sampled_from(Role),
    model=names,
    context_length=counts,
    max_sequences=counts,
)
histograms = st.lists(st.tuples(floats, counts), max_size=3).map(
    lambda rows: HistogramReport(
        bounds=tuple(bound for bound, _ in rows), counts=(*(count for _, count in rows), 9), sum=2.5
    )
)
pairs = st.builds(
    PairReport,
    peer=names.map(WorkerId),
    direction=st.sampled_from(Direction),
    transport=names,
    num_transfers=counts,
    num_bytes=counts,
    num_spans=counts,
    write_seconds=histograms,
    verify_s=floats,
    failures=st.lists(
        st.builds(PairFailures, phase=names, reason=names, count=counts), max_size=2
    ).map(tuple),
    num_quarantined_blocks=counts,
    num_fenced=counts,
    num_refused_writes=counts,
)
seconds = st.floats(0.0, 1e9)
positive = st.floats(1e-9, 1e9)
backlogs = st.lists(st.tuples(seconds, seconds), max_size=8).map(
    lambda points: tuple(
        zip(sorted(due for due, _ in points), sorted(work for _, work in points), strict=True)
    )
)
errors = st.lists(positive, min_size=3, max_size=3).map(
    lambda three: ErrorQuantiles(p50=min(three), p90=sorted(three)[1], p99=max(three))
)
links = st.builds(LinkCost, peer=names.map(WorkerId), setup_s=seconds, s_per_byte=seconds)
reports = st.builds(
    LoadReport,
    num_running=counts,
    num_waiting=counts,
    num_queued_tokens=counts,
    num_context_tokens=counts,
    num_free_blocks=counts,
    num_unused_blocks=counts,
    num_blocks=counts,
    num_quarantined_blocks=counts,
    num_claimed_tokens=counts,
    backlog=backlogs,
    prefill_cost=st.builds(PrefillCost, c0=seconds, c1=seconds, c2=seconds, c3=seconds),
    decode_cost=st.builds(DecodeCost, d0=seconds, d1=seconds, d2=seconds),
    prefill_error=errors,
    decode_error=errors,
    is_serving=st.booleans(),
    is_draining=st.booleans(),
    drain=st.none()
    | st.builds(
        DrainReport,
        seconds=seconds,
        left_s=seconds,
        then=st.none() | st.sampled_from(Role),
        ends=st.booleans(),
    ),
    num_open_calls=counts,
    step_age_s=floats,
    request_ids=st.lists(names, max_size=3).map(tuple),
    counters=st.dictionaries(names, floats, max_size=3),
    pairs=st.none() | st.lists(pairs, max_size=2).map(tuple),
    links=st.none() | st.lists(links, max_size=2).map(tuple),
)
changes = st.builds(CacheChange, stored=hash_tuples, evicted=hash_tuples)
logprobs = st.builds(TokenLogprob, token_id=ids, logprob=float32s, top=tops)


def sent(message: M) -> M:
    return type(message).FromString(message.SerializeToString())


@st.composite
def compute_requests(draw: st.DrawFn) -> ComputeRequest:
    given = draw(params)
    num_emitted = draw(st.sampled_from([0, given.num_choices]))
    emitted = draw(st.lists(id_tuples, min_size=num_emitted, max_size=num_emitted))
    return ComputeRequest(
        request_id=draw(filled),
        prompt_ids=draw(st.lists(ids, min_size=1, max_size=20)),
        params=given,
        hash_key=b"k" * 32,
        emitted=tuple(emitted),
        due_s=draw(st.floats(-1e6, 1e6)),
    )


@given(value=params)
def test_parameters(value: GenerationParams) -> None:
    assert params_codec.params_from_pb(sent(params_codec.params_to_pb(value))) == value


def test_a_parameter_of_64_bits_is_the_same_after_its_first_and_its_second_journey() -> None:
    sampling = SamplingParams(seed=1, temperature=0.7, top_p=0.95)
    once = params_codec.params_from_pb(
        params_codec.params_to_pb(GenerationParams(sampling=sampling, max_tokens=1))
    )
    assert once.sampling.temperature == struct.unpack("<f", struct.pack("<f", 0.7))[0]
    assert params_codec.params_from_pb(params_codec.params_to_pb(once)) == once


@given(value=addresses)
def test_worker_addresses_and_fingerprints(value: WorkerAddress) -> None:
    assert worker_codec.address_from_pb(sent(worker_codec.address_to_pb(value))) == value


@given(value=members)
def test_members(value: Member) -> None:
    message = sent(worker_codec.member_to_pb(value, ttl_s=3.0))
    assert worker_codec.member_from_pb(message) == value
    assert message.ttl_seconds == 3.0


@given(value=reports)
def test_load_reports(value: LoadReport) -> None:
    assert codec.load_report_from_pb(sent(codec.load_report_to_pb(value))) == value


@given(value=changes)
def test_cache_changes(value: CacheChange) -> None:
    message = sent(codec.cache_change_to_pb(value))
    assert codec.cache_change_from_pb(message) == value
    assert len(message.stored) == 16 * len(value.stored)


@given(value=st.builds(SampledToken, token_id=ids, logprob=st.none() | logprobs))
def test_sampled_tokens(value: SampledToken) -> None:
    assert codec.sampled_from_pb(sent(codec.sampled_to_pb(value))) == value


@given(value=st.builds(TokenLogprob, token_id=ids, logprob=st.none() | float32s, top=tops))
def test_prompt_logprobs_of_which_the_first_has_none(value: TokenLogprob) -> None:
    assert codec.prompt_logprob_from_pb(sent(codec.prompt_logprob_to_pb(value))) == value


def computed(
    message: worker_pb2.DecodeRequest, like: ComputeRequest | None = None
) -> ComputeRequest:
    """Under the hash key of `like`: both ends derive theirs."""
    request = codec.compute_request_from_pb(message, hash_secret=b"secret", model_digest="model")
    return request if like is None else replace(request, hash_key=like.hash_key)


@pytest.mark.slow
@given(value=compute_requests(), prefill=st.none() | addresses, tenant=names, scope=names)
def test_decode_requests(
    value: ComputeRequest, prefill: WorkerAddress | None, tenant: str, scope: str
) -> None:
    known = codec.decode_request_to_bytes(value, model="m", tenant=tenant, cache_scope=scope)
    placed = codec.placement_to_bytes(
        member().worker, prefill=prefill, emitted=value.emitted, due_s=value.due_s, router_s=0.5
    )
    message = worker_pb2.DecodeRequest.FromString(known + placed)
    assert computed(message, value) == value
    other = worker_pb2.DecodeRequest.FromString(message.SerializeToString())
    other.tenant += "'s neighbour"
    assert computed(message).hash_key != computed(other).hash_key
    assert (message.tenant, message.cache_scope) == (tenant, scope)
    assert message.router_seconds == 0.5
    if prefill is None:
        assert not message.HasField("prefill")
    else:
        assert named(message.prefill) == (prefill.worker_id, prefill.incarnation)
        assert {field.name for field, _ in message.prefill.ListFields()} <= {
            "worker_id",
            "incarnation",
        }


def named(message: worker_pb2.WorkerAddress) -> tuple[str, str]:
    return message.worker_id, message.incarnation


def test_a_worker_of_the_version_before_is_told_all_of_whom_a_request_names() -> None:
    other = member("p0", role=Role.PREFILL).worker
    before = member(fingerprint=replace(FINGERPRINT, wire_version=NAMED_SINCE - 1)).worker
    for decode, is_whole in ((before, True), (member().worker, False)):
        placed = codec.placement_to_bytes(decode, prefill=other, source=other)
        message = worker_pb2.DecodeRequest.FromString(placed)
        for each in (message.prefill, message.source):
            assert named(each) == (other.worker_id, other.incarnation)
            assert (each == worker_codec.address_to_pb(other)) is is_whole


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kv_dtype": "int3"}, "dtype is 'int3'"),
        ({"num_planes": 3}, "3 planes"),
        ({"windows": [4]}, "1 windows for 2 layers"),
        ({"total_heads": 4, "first_head": 3}, "heads up to 5 of 4"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(changes: dict[str, Any], problem: str) -> None:
    layout = KvLayout(num_layers=2, num_blocks=9, block_size=4, num_kv_heads=2, head_dim=8)
    fingerprint = Fingerprint(
        model_digest="m", tokenizer_digest="t", template_digest="c", hash_grain=4, layout=layout
    )
    message = worker_codec.fingerprint_to_pb(fingerprint)
    for name in changes:
        message.ClearField(name)
    message.MergeFrom(worker_pb2.Fingerprint(**changes))
    with pytest.raises(InvalidRequest, match=problem):
        worker_codec.fingerprint_from_pb(message)


def due(due_s: float, work_s: float) -> worker_pb2.BacklogPoint:
    return worker_pb2.BacklogPoint(due_seconds=due_s, work_seconds=work_s)


@pytest.mark.parametrize(
    ("report", "field"),
    [
        (worker_pb2.LoadReport(backlog=[due(float(i), 1.0) for i in range(9)]), "backlog"),
        (worker_pb2.LoadReport(backlog=[due(1.0, 2.0), due(0.5, 3.0)]), "backlog"),
        (worker_pb2.LoadReport(backlog=[due(1.0, 2.0), due(2.0, 1.0)]), "backlog"),
        (worker_pb2.LoadReport(backlog=[due(-1.0, 2.0)]), "backlog"),
        (worker_pb2.LoadReport(backlog=[due(0.0, math.nan)]), "backlog"),
        (worker_pb2.LoadReport(backlog=[due(math.inf, 1.0)]), "backlog"),
        (worker_pb2.LoadReport(prefill=worker_pb2.PrefillCost(c1=-1.0)), "prefill"),
        (worker_pb2.LoadReport(decode=worker_pb2.DecodeCost(d0=math.inf)), "decode"),
        (
            worker_pb2.LoadReport(prefill_error=worker_pb2.ErrorQuantiles(p50=1, p90=0.5, p99=2)),
            "prefill_error",
        ),
        (worker_pb2.LoadReport(decode_error=worker_pb2.ErrorQuantiles()), "decode_error"),
        (
            worker_pb2.LoadReport(links=[worker_pb2.LinkCost(seconds_per_byte=math.nan)]),
            "links",
        ),
        (worker_pb2.LoadReport(links=[worker_pb2.LinkCost()] * 257), "links"),
    ],
)
def test_a_prediction_that_would_poison_a_price_is_refused(
    report: worker_pb2.LoadReport, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        codec.load_report_from_pb(report)
    assert caught.value.field == field


@pytest.mark.parametrize("due_s", [-2e6, math.nan, -math.inf, 2e6])
def test_when_a_first_token_is_due_is_bounded(due_s: float) -> None:
    message = worker_pb2.DecodeRequest(
        request_id="r",
        prompt_token_ids=[1],
        params=worker_pb2.ResolvedParams(num_choices=1),
        due_seconds=due_s,
    )
    with pytest.raises(InvalidRequest, match=r"due within 1e\+06 s"):
        computed(message)


def test_of_a_worker_that_says_nothing_of_its_errors_none_are_known() -> None:
    report = codec.load_report_from_pb(worker_pb2.LoadReport())
    assert report.prefill_error == report.decode_error == ErrorQuantiles()


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: codec.hashes_from_bytes("stored", b"x" * 17), "stored"),
        (lambda: worker_codec.address_from_pb(worker_pb2.WorkerAddress()), "worker.worker_id"),
        (lambda: worker_codec.member_from_pb(worker_pb2.RegisterRequest(role=9)), "role"),  # type: ignore[arg-type]
        (lambda: worker_codec.member_from_pb(worker_pb2.RegisterRequest()), "role"),
        (
            lambda: worker_codec.member_from_pb(
                worker_pb2.RegisterRequest(role=worker_pb2.ROLE_DECODE, metrics="h" * 300)
            ),
            "metrics",
        ),
        (
            lambda: codec.load_report_from_pb(
                worker_pb2.LoadReport(pairs=[worker_pb2.PairReport()])
            ),
            "pairs.direction",
        ),
        (
            lambda: codec.load_report_from_pb(
                worker_pb2.LoadReport(
                    pairs=[worker_pb2.PairReport(direction=worker_pb2.PAIR_DIRECTION_SENT)]
                )
            ),
            "pairs.write_seconds",
        ),
        (
            lambda: computed(worker_pb2.DecodeRequest()),
            "request_id",
        ),
        (
            lambda: computed(
                worker_pb2.DecodeRequest(
                    request_id="r",
                    prompt_token_ids=[1],
                    params=worker_pb2.ResolvedParams(num_choices=2),
                    emitted=[worker_pb2.EmittedTokens()],
                ),
            ),
            "emitted",
        ),
    ],
)
def test_what_a_peer_sent_wrongly_is_refused_with_its_field(call: object, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call()  # type: ignore[operator]
    assert caught.value.field == field


def test_parameters_of_a_newer_peer_are_refused_and_not_ignored() -> None:
    params = GenerationParams(sampling=SamplingParams(seed=1), max_tokens=1)
    raw = params_codec.params_to_pb(params).SerializeToString()
    newer = worker_pb2.ResolvedParams.FromString(raw + b"\x98\x06\x01")  # field 99
    with pytest.raises(UnsupportedFeature, match="too old") as caught:
        params_codec.params_from_pb(newer)
    assert caught.value.feature == "field 99 of the parameters"
