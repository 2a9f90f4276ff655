"""Bodies of HTTP become requests of the contract, field by field."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import (
    CallerError,
    InvalidRequest,
    PenstockError,
    QuotaExceeded,
    UnsupportedFeature,
)
from penstock.v1 import inference_pb2 as pb
from router.http.contract import TARGETS, parameter
from router.http.errors import STATUS, failure_of
from router.http.fields import (
    REFUSED_IN_CHAT,
    REFUSED_IN_COMPLETIONS,
    ChatRequest,
    CompletionRequest,
)
from router.http.reading import BodyKind, packed_asked, read_body, unpacked_asked
from router.http.response_fields import ResponseRequest

QUESTION = [{"role": "user", "content": "a"}]
VALUES: dict[Any, Any] = {str: "x", int: 3, float: 0.5, bool: True}


def read_chat(**said: Any) -> pb.GenerateRequest:
    asked = read_body(BodyKind.CHAT, json.dumps({"messages": QUESTION, **said}).encode())
    return pb.GenerateRequest.FromString(asked.messages[0])


def value_of(kind: Any) -> Any:
    if kind in VALUES:
        return VALUES[kind]
    return {"5": -1.0} if kind == dict[int, float] else ["x"] if kind == str | list[str] else [3]


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_field_of_the_contract_can_be_said_or_is_refused_by_name(name: str) -> None:
    target = TARGETS[name]
    value = value_of(target.kind)
    said = {"prompt": "a", "max_tokens": 1, name: value}
    body = json.dumps(said).encode()
    if not target.rule.is_supported:
        with pytest.raises(UnsupportedFeature) as caught:
            read_body(BodyKind.COMPLETION, body)
        assert parameter(caught.value.feature) == name
        return
    request = pb.GenerateRequest.FromString(read_body(BodyKind.COMPLETION, body).messages[0])
    part = getattr(request, target.rule.part) if target.rule.part else request
    written: Any = getattr(part, target.rule.name)
    if name == "logit_bias":
        assert dict(written) == {5: -1.0}
    elif hasattr(written, "ToNanoseconds"):
        assert written.ToNanoseconds() == value * 1e9
    else:
        assert (list(written) if isinstance(value, list) else written) == value


CHANGING: dict[str, Any] = {
    "response_format": {"type": "json_schema"},
    "tool_choice": "required",
    "modalities": ["audio"],
    "service_tier": "flex",
    "length_penalty": 2,
}


@pytest.mark.parametrize("name", sorted(REFUSED_IN_CHAT))
def test_what_is_known_and_unsupported_is_refused_unless_it_changes_nothing(name: str) -> None:
    for harmless in (None, False, [], "", *REFUSED_IN_CHAT[name]):
        read_chat(**{name: harmless})
    with pytest.raises(UnsupportedFeature, match=name):
        read_chat(**{name: CHANGING.get(name, "something")})
    assert set(REFUSED_IN_COMPLETIONS) - set(REFUSED_IN_CHAT) == {"suffix"}


def test_openais_names_stand_for_the_contracts() -> None:
    request = read_chat(
        max_completion_tokens=7, stop="b", seed=-1, prompt_cache_key="k", logprobs=True
    )
    assert request.stop.max_tokens == 7
    assert list(request.stop.stop_strings) == ["b"]
    assert (request.sampling.seed, request.session_key) == (2**64 - 1, "k")
    assert (request.logprobs.HasField("top"), request.logprobs.top) == (True, 0)
    assert read_chat(logprobs=True, top_logprobs=2).logprobs.top == 2
    assert not read_chat(logprobs=False).HasField("logprobs")
    assert read_chat(prompt_cache_key="k", session_key="s").session_key == "s"


def test_parts_of_a_text_stand_on_lines_of_their_own() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "user", "content": parts, "name": None},
        {"role": "assistant", "content": None, "tool_calls": [], "refusal": None, "audio": None},
    ]
    chat = read_chat(messages=messages).chat
    assert [(m.role, m.content) for m in chat.messages] == [("user", "a\nb"), ("assistant", "")]
    for name in ("name", "tool_calls", "tool_call_id"):
        with pytest.raises(UnsupportedFeature, match=rf"messages\[0\]\.{name}"):
            read_chat(messages=[{**QUESTION[0], name: "x"}])


def test_echo_with_logprobs_asks_for_those_of_the_prompt() -> None:
    body = json.dumps({"prompt": "a", "echo": True, "logprobs": 2}).encode()
    asked = read_body(BodyKind.COMPLETION, body)
    request = pb.GenerateRequest.FromString(asked.messages[0])
    assert (request.logprobs.prompt_top, request.logprobs.top) == (2, 2)
    assert unpacked_asked(packed_asked(BodyKind.COMPLETION, body)) == asked


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": ["a", [1]]}, "prompt"),
    ({"prompt": [1, -1]}, "prompt[0]"),
    ({"prompt": [1, 2.5]}, "prompt[1]"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({}, "prompt"),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
    ({"prompt": "a", "logit_bias": {"a": 1}}, "logit_bias"),
    ({"prompt": "a", "stream_options": {"include_usage": 3}}, "stream_options.include_usage"),
]


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
TYPES = {
    BodyKind.CHAT: (ChatRequest, {"messages": QUESTION}),
    BodyKind.COMPLETION: (CompletionRequest, {"prompt": "a"}),
    BodyKind.RESPONSE: (ResponseRequest, {"input": "a"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_whatever_stands_in_a_field_is_read_or_refused(kind: BodyKind, data: Any) -> None:
    fields, needed = TYPES[kind]
    names = st.sampled_from(sorted(fields.__struct_fields__))
    body = {**needed, **data.draw(st.dictionaries(names, JSON, min_size=1, max_size=2))}
    with suppress(CallerError):
        packed_asked(kind, json.dumps(body).encode())


@pytest.mark.parametrize(("said", "field"), WRONG)
def test_what_cannot_be_read_names_its_field(said: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_body(BodyKind.COMPLETION, json.dumps(said).encode())
    assert parameter(caught.value.field).startswith(field)
    assert caught.value.message.endswith(".")


def test_best_of_is_what_n_is() -> None:
    for said in ({"best_of": 1}, {"best_of": 2, "n": 2}):
        read_body(BodyKind.COMPLETION, json.dumps({"prompt": "a", **said}).encode())
    with pytest.raises(UnsupportedFeature, match="best_of"):
        read_body(BodyKind.COMPLETION, b'{"prompt":"a","best_of":2}')


def test_no_status_makes_clients_come_again_at_once() -> None:
    """408 does; and 429 is told to who has been over a quota of his own, and to nobody else."""
    assert 408 not in STATUS.values()
    assert [kind for kind, status in STATUS.items() if status == 429] == [QuotaExceeded]
    for kind, status in STATUS.items():
        error = kind.__new__(kind)
        PenstockError.__init__(error, "It failed.")
        for name, value in {"field": "", "feature": "", "retry_after_s": 2.5}.items():
            setattr(error, name, value)
        failed = failure_of(error)
        names = {name for name, _ in failed.headers}
        assert failed.status == status
        assert (b"retry-after" in names) == (status in (429, 503))
        if status >= 500:
            assert names & {b"retry-after", b"x-should-retry"}
