"""Requests of millions of fields are refused before they are parsed, and all others are not."""

import time
from dataclasses import replace

import pytest
from google.protobuf.message import Message

from cluster.errors import InvalidRequest, PenstockError, UnsupportedFeature
from penstock.v1 import inference_pb2 as pb
from router.front.wire_bounds import FREE_BYTES, check_wire
from tests.router.served_model import INFO, LIMITS

ROOMY = replace(INFO, context_length=1 << 17, max_token_bytes=16)
NUM_BYTES = 8 << 20


def wrapped(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def number(message_type: type[Message], name: str) -> int:
    return message_type.DESCRIPTOR.fields_by_name[name].number


GENERATE, TOKENIZE = pb.GenerateRequest, pb.TokenizeRequest
EMPTY_MESSAGES = wrapped(number(pb.Chat, "messages"), b"") * (NUM_BYTES // 2)
EMPTY_BIASES = wrapped(number(pb.SamplingParams, "logit_bias"), b"") * (NUM_BYTES // 2)
HOSTILE: dict[str, tuple[type[Message], bytes, str]] = {
    "empty messages": (GENERATE, wrapped(number(GENERATE, "chat"), EMPTY_MESSAGES[:-64]), "chat"),
    "of some chats": (GENERATE, wrapped(number(GENERATE, "chat"), EMPTY_MESSAGES[:3000]) * 99, ""),
    "of Tokenize": (TOKENIZE, wrapped(number(TOKENIZE, "chat"), EMPTY_MESSAGES[:80_000]), "chat"),
    "biases": (GENERATE, wrapped(number(GENERATE, "sampling"), EMPTY_BIASES[:-64]), "sampling"),
    "ids": (GENERATE, wrapped(number(GENERATE, "token_ids"), b"\x0a\0" * 4_000_000), "token_ids"),
    "ids to detokenise": (pb.DetokenizeRequest, wrapped(2, b"\x01" * NUM_BYTES), "token_ids"),
    "text": (GENERATE, pb.GenerateRequest(text="x" * (3 << 20)).SerializeToString(), "text"),
    "unknown fields": (GENERATE, (varint(999 << 3) + b"\0") * (NUM_BYTES // 3), "request"),
    "one unknown field": (GENERATE, wrapped(999, b"x" * NUM_BYTES), "request"),
    "a group": (GENERATE, b"\x0b" * NUM_BYTES, "request"),
    "a number without end": (GENERATE, b"\x08" + b"\xff" * NUM_BYTES, "request"),
    "a field that ends too late": (GENERATE, b"\x1a\xff\xff\xff\x7f" + b"x" * NUM_BYTES, "request"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_take_long_to_parse_is_refused_in_a_moment(name: str) -> None:
    message_type, data, field = HOSTILE[name]
    begin = time.thread_time()
    with pytest.raises(InvalidRequest) as caught:
        check_wire(data, message_type, ROOMY, LIMITS)
    assert time.thread_time() - begin < 0.03
    assert caught.value.field.startswith(field)


def test_what_is_not_supported_is_named_however_large() -> None:
    request = pb.GenerateRequest(text="a", trace_context={"traceparent": "x" * NUM_BYTES})
    with pytest.raises(UnsupportedFeature, match="trace_context"):
        check_wire(request.SerializeToString(), pb.GenerateRequest, ROOMY, LIMITS)


IN_BOUNDS: dict[str, Message] = {
    "text": pb.GenerateRequest(text="x" * (2 << 20), stop={"stop_strings": ["a"] * 16}),
    "ids": pb.GenerateRequest(token_ids={"ids": [127_999] * 131_000}),
    "messages": pb.TokenizeRequest(
        chat=pb.Chat(
            messages=[pb.ChatMessage(role="user", content="x" * 2000)] * LIMITS.max_messages,
            add_generation_prompt=True,
        )
    ),
    "ids to draw": pb.GenerateRequest(text="a", sampling={"allowed_token_ids": range(999)}),
    "ids to detokenise": pb.DetokenizeRequest(token_ids=[127_999] * (1 << 17)),
}


@pytest.mark.parametrize("name", IN_BOUNDS)
def test_what_is_in_bounds_is_parsed(name: str) -> None:
    message = IN_BOUNDS[name]
    num_bytes = check_wire(message.SerializeToString(), type(message), ROOMY, LIMITS)
    assert (num_bytes > FREE_BYTES) == (name in ("text", "messages"))


@pytest.mark.parametrize("name", HOSTILE)
def test_small_requests_are_judged_when_they_are_parsed(name: str) -> None:
    message_type, data, _ = HOSTILE[name]
    check_wire(data[:FREE_BYTES], message_type, ROOMY, LIMITS)


def test_a_large_request_with_a_field_of_a_newer_client_says_so() -> None:
    from router.front.validation import check_generate

    request = pb.GenerateRequest.FromString(
        pb.GenerateRequest(text="x" * (1 << 20)).SerializeToString() + b"\xf8\x3e\x01"
    )
    with pytest.raises(PenstockError, match="does not know a field: it is older"):
        check_generate(request, ROOMY, LIMITS)
