"""Every wrong value is refused with its field and a sentence; every right one is resolved."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.chat_template import ChatTemplate
from cluster.errors import CallerError, InvalidRequest, UnknownModel, UnsupportedFeature
from cluster.limits import Limits
from cluster.rpc import parsed
from cluster.tokenizer import Tokenizer
from cluster.types import ChatMessage, ComputeRequest
from penstock.v1 import inference_pb2 as pb
from router.front import validation
from router.front.field_rules import UNSUPPORTED
from router.front.model_info import ModelInfo, SamplingDefaults
from router.front.prompt import ChatPrompt, TextPrompt, TokenPrompt, prompt_ids
from router.front.validation import (
    check_detokenize,
    check_generate,
    check_tokenize,
)
from tests.cluster.small_tokenizers import small_tokenizer
from tests.router.served_model import INFO, LIMITS

SHIPPED = Path(__file__).parents[2] / "shipped_model" / "penstock-tiny"
TOKENIZER = small_tokenizer("byte_level")
resolve = partial(validation.resolve, hash_key=b"key")


def request(**fields: object) -> pb.GenerateRequest:
    if not {"text", "chat", "token_ids"} & fields.keys():
        fields["text"] = "hi"
    return pb.GenerateRequest(**fields)  # type: ignore[arg-type]


def sampling(**fields: object) -> pb.GenerateRequest:
    return request(sampling=pb.SamplingParams(**fields))  # type: ignore[arg-type]


def stop(**fields: object) -> pb.GenerateRequest:
    return request(stop=pb.LengthAndStop(**fields))  # type: ignore[arg-type]


def chat(*messages: tuple[str, str]) -> pb.Chat:
    return pb.Chat(messages=[pb.ChatMessage(role=r, content=c) for r, c in messages])


def resolved(
    message: pb.GenerateRequest, ids: int | list[int] = 10, limits: Limits = LIMITS
) -> ComputeRequest:
    ids = [5] * ids if isinstance(ids, int) else ids
    return resolve(check_generate(message, INFO, limits), ids, TOKENIZER, INFO, limits)


# Wrong


WRONG: dict[str, tuple[pb.GenerateRequest, str, str]] = {
    "no prompt": (pb.GenerateRequest(), "prompt", "There is no prompt"),
    "empty text": (request(text=""), "text", "is empty"),
    "no messages": (request(chat=pb.Chat()), "chat.messages", "no messages"),
    "a message without a role": (
        request(chat=chat(("user", "a"), ("", "b"))),
        "chat.messages[1].role",
        "needs a role",
    ),
    "a role of a kilobyte": (
        request(chat=chat(("r" * 1000, "b"))),
        "chat.messages[0].role",
        "role",
    ),
    "no ids": (request(token_ids=pb.TokenIds()), "token_ids.ids", "no tokens"),
    "ids over the context": (
        request(token_ids=pb.TokenIds(ids=[1] * 100)),
        "token_ids.ids",
        "has 100 tokens; the model has a context of 100",
    ),
    "text over the limit": (request(text="é" * (2 << 20) + "x"), "text", "4194305 bytes; at most"),
    "a chat over the limit": (
        request(chat=chat(*[("user", "x" * (1 << 20))] * 5)),
        "chat.messages",
        "at most 4194304",
    ),
    "too many messages": (
        request(chat=chat(*[("user", "x")] * 3000)),
        "chat.messages",
        "3000 messages were given; at most 2048",
    ),
    "n of zero": (request(n=0), "n", "n is 0; it must lie between 1 and 16"),
    "n of a million": (request(n=1_000_000), "n", "between 1 and 16"),
    "a long request id": (request(request_id="r" * 129), "request_id", "at most 128"),
    "a request id with a newline": (request(request_id="a\nb"), "request_id", "printable ASCII"),
    "a request id of emoji": (request(request_id="🙂"), "request_id", "printable ASCII"),
    "a long cache scope": (request(cache_scope="s" * 129), "cache_scope", "at most 128"),
    "a long class": (request(service_class="c" * 64), "service_class", "at most 63"),
    "a long session key": (request(session_key="s" * 257), "session_key", "at most 256"),
    "a session key with a line's end": (request(session_key="a\n"), "session_key", "printable"),
    "no time at all": (request(ttft_budget={}), "ttft_budget", "above 0"),
    "less than no time": (request(itl_budget={"seconds": -1}), "itl_budget", "above 0"),
    "nanoseconds of two seconds": (request(ttft_budget={"nanos": 2 * 10**9}), "ttft_budget", ""),
    "an age": (request(ttft_budget={"seconds": 2**62}), "ttft_budget", "at most 86400 s"),
    "a cache scope with a zero": (request(cache_scope="\0"), "cache_scope", "printable"),
    "negative temperature": (sampling(temperature=-1), "sampling.temperature", "between 0 and 10"),
    "absurd temperature": (sampling(temperature=1e30), "sampling.temperature", "0 is greedy"),
    "tiny temperature": (sampling(temperature=1e-30), "sampling.temperature", "0 is greedy"),
    "top_p of zero": (sampling(top_p=0), "sampling.top_p", "top_p is 0"),
    "top_p of two": (sampling(top_p=2), "sampling.top_p", "1 keeps all tokens"),
    "negative min_p": (sampling(min_p=-0.1), "sampling.min_p", "between 0 and 1"),
    "frequency_penalty": (sampling(frequency_penalty=2.1), "sampling.frequency_penalty", "2.1"),
    "presence_penalty": (sampling(presence_penalty=-3), "sampling.presence_penalty", "-3"),
    "no repetition_penalty": (
        sampling(repetition_penalty=0),
        "sampling.repetition_penalty",
        "1 is none",
    ),
    "repetition_penalty": (sampling(repetition_penalty=11), "sampling.repetition_penalty", "11"),
    "absurd top_k": (sampling(top_k=2**32 - 1), "sampling.top_k", "0 for all tokens"),
    "a bias of NaN": (
        sampling(logit_bias={7: math.nan}),
        "sampling.logit_bias[7]",
        "bias of token 7 is nan",
    ),
    "a bias of 101": (sampling(logit_bias={7: 101.0}), "sampling.logit_bias[7]", "-100 and 100"),
    "a bias of no token": (
        sampling(logit_bias={5000: 1.0}),
        "sampling.logit_bias[5000]",
        "vocabulary of 1000",
    ),
    "too many biases": (
        sampling(logit_bias=dict.fromkeys(range(2000), 1.0)),
        "sampling.logit_bias",
        "2000 logit biases were given; at most 1024",
    ),
    "allowed ids of no token": (
        sampling(allowed_token_ids=[1, 1000]),
        "sampling.allowed_token_ids[1]",
        "vocabulary",
    ),
    "too many allowed ids": (
        sampling(allowed_token_ids=[1] * 1001),
        "sampling.allowed_token_ids",
        "at most 1000",
    ),
    "bad ids of no token": (sampling(bad_token_ids=[9999]), "sampling.bad_token_ids[0]", "9999"),
    "nothing left of the allowed": (
        sampling(allowed_token_ids=[4, 5], bad_token_ids=[5, 4]),
        "sampling.allowed_token_ids",
        "No token is left",
    ),
    "nothing left at all": (
        sampling(bad_token_ids=list(range(1000))),
        "sampling.bad_token_ids",
        "No token is left",
    ),
    "only stop tokens before min_tokens": (
        request(
            sampling=pb.SamplingParams(allowed_token_ids=[2, 3]),
            stop=pb.LengthAndStop(min_tokens=1),
        ),
        "sampling.allowed_token_ids",
        "before min_tokens",
    ),
    "an empty bad word": (sampling(bad_words=["a", ""]), "sampling.bad_words[1]", "is empty"),
    "a bad word of spaces": (
        sampling(bad_words=[" \n"]),
        "sampling.bad_words[0]",
        "nothing but space: name spaces by bad_token_ids",
    ),
    "a long bad word": (
        sampling(bad_words=["\u00e9" * 65]),
        "sampling.bad_words[0]",
        "130 bytes; at most 128",
    ),
    "a thousand bad words": (
        sampling(bad_words=["x"] * 1000),
        "sampling.bad_words",
        "1000 bad words were given; at most 128",
    ),
    "nothing left but the end of a bad word": (
        sampling(bad_words=["The"], allowed_token_ids=[TOKENIZER.encode("The")[-1]]),
        "sampling.bad_words",
        "all that are allowed end a bad word. Allow one more",
    ),
    "no max_tokens": (stop(max_tokens=0), "stop.max_tokens", "at least 1"),
    "max_tokens over the context": (
        stop(max_tokens=100),
        "stop.max_tokens",
        "max_tokens is 100; the model has a context of 100",
    ),
    "min_tokens over max_tokens": (
        stop(max_tokens=5, min_tokens=6),
        "stop.min_tokens",
        "more than the 5",
    ),
    "min_tokens over the context": (stop(min_tokens=2**31), "stop.min_tokens", "more than the 99"),
    "an empty stop string": (stop(stop_strings=["a", ""]), "stop.stop_strings[1]", "is empty"),
    "a long stop string": (
        stop(stop_strings=["é" * 129]),
        "stop.stop_strings[0]",
        "258 bytes; at most 256",
    ),
    "10,000 stop strings": (
        stop(stop_strings=[str(number) for number in range(10_000)]),
        "stop.stop_strings",
        "10000 stop strings were given; at most 16",
    ),
    "a stop token of no token": (stop(stop_token_ids=[1000]), "stop.stop_token_ids[0]", "1000"),
    "too many stop tokens": (stop(stop_token_ids=[1] * 300), "stop.stop_token_ids", "at most 256"),
    "too many logprobs": (
        request(logprobs=pb.LogprobOptions(top=21)),
        "logprobs.top",
        "21 alternatives were asked for; the most is 20",
    ),
    "too many prompt logprobs": (
        request(logprobs=pb.LogprobOptions(prompt_top=2**31)),
        "logprobs.prompt_top",
        "the most is 20",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_refused_with_its_field_and_a_sentence(case: str) -> None:
    message, field, says = WRONG[case]
    with pytest.raises(InvalidRequest) as caught:
        resolved(parsed(pb.GenerateRequest, message.SerializeToString()))
    assert caught.value.field == field
    assert says in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    "name",
    [
        "temperature",
        "top_p",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolved(sampling(**{name: value}))
    assert caught.value.field == f"sampling.{name}"


def test_an_unknown_model_is_named_with_the_one_that_is_served() -> None:
    with pytest.raises(UnknownModel, match="'gpt' is not served here; served: 'tiny'"):
        resolved(request(model="gpt"))


SET: dict[str, Callable[[pb.GenerateRequest], object]] = {
    "adapter": lambda r: setattr(r, "adapter", "lora"),
    "beam_width": lambda r: setattr(r, "beam_width", 2),
    "constraint": lambda r: setattr(r.constraint, "regex", "a+"),
    "input_embeddings": lambda r: setattr(r, "input_embeddings", b"x"),
    "logprobs.prompt_start": lambda r: setattr(r.logprobs, "prompt_start", 0),
    "logprobs.token_ids": lambda r: r.logprobs.token_ids.append(0),
    "media": lambda r: r.media.add(),
    "return_hidden_states": lambda r: setattr(r, "return_hidden_states", True),
    "stop.detect_repetition": lambda r: setattr(r.stop, "detect_repetition", True),
    "stop.stop_regex": lambda r: setattr(r.stop, "stop_regex", "a+"),
    "stop.thinking_budget": lambda r: setattr(r.stop, "thinking_budget", 0),
    "stream_interval": lambda r: setattr(r, "stream_interval", 1),
    "trace_context": lambda r: r.trace_context.update({"traceparent": "x"}),
    "truncate_prompt_tokens": lambda r: setattr(r, "truncate_prompt_tokens", 5),
}


@pytest.mark.parametrize("path", UNSUPPORTED)
def test_a_feature_that_is_not_there_yet_is_refused_by_name(path: str) -> None:
    message = request()
    SET[path](message)
    with pytest.raises(UnsupportedFeature, match="not supported yet") as caught:
        resolved(parsed(pb.GenerateRequest, message.SerializeToString()))
    assert caught.value.feature == path


def test_a_beam_of_one_is_no_beam() -> None:
    assert resolved(request(beam_width=1))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"\x1a\x02hi" + b"\xf8\x07\x01", "field 127 of GenerateRequest"),
        (b"\x1a\x02hi" + b"\x32\x03\xf8\x07\x01", "a nested field"),
    ],
)
def test_a_field_of_a_newer_client_is_refused_and_not_ignored(raw: bytes, says: str) -> None:
    with pytest.raises(UnsupportedFeature, match="older than the client") as caught:
        check_generate(parsed(pb.GenerateRequest, raw), INFO, LIMITS)
    assert says in caught.value.message


@pytest.mark.parametrize("raw", [b"\xff", b"\x1a\x05hi", b"\x1a\x02\xff\xfe", b"\x0a\x01\x80"])
def test_bytes_that_are_no_request_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="malformed, or a text in them is not valid UTF-8"):
        parsed(pb.GenerateRequest, raw)


@given(raw=st.binary(max_size=64))
def test_any_bytes_are_a_request_or_are_refused(raw: bytes) -> None:
    with contextlib.suppress(CallerError):
        given = check_generate(parsed(pb.GenerateRequest, raw), INFO, LIMITS)
        resolve(given, [1], TOKENIZER, INFO, LIMITS)


# Right


@pytest.mark.parametrize(
    ("defaults", "num_prompt", "expected"),
    [
        (SamplingDefaults(max_new_tokens=7), 10, 7),
        (SamplingDefaults(max_new_tokens=95), 10, 90),
        (SamplingDefaults(max_length=30), 10, 20),
        (SamplingDefaults(max_length=300), 10, 90),
    ],
)
def test_the_checkpoint_may_say_how_long_answers_are(
    defaults: SamplingDefaults, num_prompt: int, expected: int
) -> None:
    info, ids = replace(INFO, defaults=defaults), [5] * num_prompt
    given = check_generate(request(), info, LIMITS)
    assert resolve(given, ids, TOKENIZER, info, LIMITS).params.max_tokens == expected
    asked = check_generate(stop(max_tokens=50), info, LIMITS)
    assert resolve(asked, ids, TOKENIZER, info, LIMITS).params.max_tokens == 50


def test_a_prompt_that_leaves_no_room_in_the_checkpoint_s_length_is_told_the_way_out() -> None:
    info = replace(INFO, defaults=SamplingDefaults(max_length=30))
    with pytest.raises(InvalidRequest, match="ends texts at 30: say how long") as caught:
        resolve(check_generate(request(), info, LIMITS), [5] * 30, TOKENIZER, info, LIMITS)
    assert caught.value.field == "stop.max_tokens"


def test_what_a_request_leaves_out_comes_from_the_checkpoint() -> None:
    params = resolved(request()).params
    drawn = params.sampling
    assert drawn.temperature == pytest.approx(0.7)
    assert drawn.top_p == pytest.approx(0.9)
    assert (drawn.top_k, drawn.min_p, drawn.repetition_penalty) == (50, 0.0, 1.0)
    assert (drawn.frequency_penalty, drawn.presence_penalty) == (0.0, 0.0)
    assert drawn.stop_token_ids == (2, 3)
    assert (drawn.num_logprobs, drawn.num_prompt_logprobs) == (None, None)
    assert params.max_tokens == 90
    assert params.skip_special_tokens
    assert not params.include_stop_string
    assert (params.num_choices, params.priority) == (1, 0)


def test_a_zero_that_is_given_is_no_default() -> None:
    drawn = resolved(sampling(temperature=0, top_k=0, seed=0, min_p=0)).params.sampling
    assert (drawn.temperature, drawn.top_k, drawn.seed) == (0.0, 0, 0)
    logprobs = resolved(request(logprobs=pb.LogprobOptions(top=0))).params.sampling
    assert logprobs.num_logprobs == 0
    assert not resolved(stop(skip_special_tokens=False)).params.skip_special_tokens


def test_a_seed_is_drawn_for_each_request_that_has_none() -> None:
    seeds = {resolved(request()).params.sampling.seed for _ in range(20)}
    assert len(seeds) == 20
    assert resolved(sampling(seed=2**64 - 1)).params.sampling.seed == 2**64 - 1


def test_a_request_id_is_made_where_there_is_none() -> None:
    assert resolved(request(request_id="mine")).request_id == "mine"
    assert len({resolved(request()).request_id for _ in range(20)}) == 20


def test_end_tokens_stop_an_answer_unless_they_are_ignored() -> None:
    assert resolved(stop(stop_token_ids=[9, 3])).params.sampling.stop_token_ids == (9, 3, 2)
    ignoring = resolved(stop(stop_token_ids=[9], ignore_eos=True))
    assert ignoring.params.sampling.stop_token_ids == (9,)


def test_as_many_as_there_are_is_all() -> None:
    assert resolved(sampling(top_k=1000)).params.sampling.top_k == 0
    assert resolved(sampling(top_k=999)).params.sampling.top_k == 999


def test_values_are_those_that_a_worker_gets_by_wire() -> None:
    """Else an answer computed here and one computed there could differ."""
    from cluster.params_codec import params_from_pb, params_to_pb

    message = request(sampling=pb.SamplingParams(min_p=0.05, logit_bias={9: 0.1, 4: -0.1}))
    params = resolved(message).params
    assert params_from_pb(params_to_pb(params)) == params


def test_limits_at_their_edge_are_allowed() -> None:
    allowed = [
        sampling(temperature=10, top_p=1, min_p=1, repetition_penalty=10),
        sampling(temperature=1e-6, frequency_penalty=-2, presence_penalty=2),
        sampling(repetition_penalty=0.01, logit_bias={999: 100.0, 0: -100.0}),
        stop(max_tokens=90, min_tokens=90),
        stop(stop_strings=[f"{number:0256}" for number in range(16)]),
        request(n=16, logprobs=pb.LogprobOptions(top=20, prompt_top=20)),
        request(request_id="r" * 128, cache_scope="ü" * 128, priority=-(2**31)),
        request(service_class="c" * 63, session_key="ü" * 256, itl_budget={"seconds": 86_400}),
    ]
    for message in allowed:
        assert resolved(message)


# After tokenising


def test_prompt_and_answer_share_the_context() -> None:
    assert resolved(stop(max_tokens=90)).params.max_tokens == 90
    with pytest.raises(InvalidRequest) as caught:
        resolved(stop(max_tokens=91))
    assert caught.value.field == "stop.max_tokens"
    for number in ("10 tokens", "91", "context of 100", "at most 90"):
        assert number in caught.value.message


@pytest.mark.parametrize(("num_tokens", "says"), [(0, "no tokens"), (100, "100 tokens")])
def test_a_prompt_that_becomes_no_tokens_or_too_many_is_refused(num_tokens: int, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        resolved(request(), num_tokens)
    assert caught.value.field == "text"
    assert resolved(request(), 99).params.max_tokens == 1


def test_a_tokenizer_that_knows_more_than_the_model_is_found_out() -> None:
    with pytest.raises(InvalidRequest, match="vocabulary") as caught:
        resolved(request(), [1, 2, 1000])
    assert caught.value.field == "text[2]"


def test_an_id_out_of_the_vocabulary_is_refused_with_its_place() -> None:
    message = request(token_ids=pb.TokenIds(ids=[1, 2, 3, 1000]))
    says = "Token id 1000 is not in the model's vocabulary of 1000"
    with pytest.raises(InvalidRequest, match=says) as caught:
        resolved(message, message.token_ids.ids)
    assert caught.value.field == "token_ids.ids[3]"


def test_min_tokens_must_fit_behind_the_prompt() -> None:
    with pytest.raises(InvalidRequest, match="has room for 5"):
        resolved(stop(min_tokens=6), 95)


def test_an_operator_may_narrow_what_a_request_may_have() -> None:
    limits = Limits(max_output_tokens=20, max_prompt_tokens=30)
    assert resolved(request(), limits=limits).params.max_tokens == 20
    with pytest.raises(InvalidRequest, match="an answer at most 20"):
        resolved(stop(max_tokens=21), limits=limits)
    with pytest.raises(InvalidRequest, match="at most 30 are allowed"):
        resolved(request(), 31, limits)


# Prompts


def test_each_kind_of_prompt_becomes_the_tokens_of_the_model() -> None:
    tokenizer, template = Tokenizer.load(SHIPPED), ChatTemplate.load(SHIPPED)
    text = prompt_ids(TextPrompt(text="What is len?"), tokenizer, template)
    assert text == tokenizer.encode("What is len?")
    messages = (ChatMessage("user", "What is len?"),)
    rendered = prompt_ids(ChatPrompt(messages=messages), tokenizer, template)
    expected = tokenizer.encode(template.render(messages), add_special_tokens=False)
    assert rendered == expected
    assert prompt_ids(TokenPrompt(ids=(7, 8)), tokenizer, template) == [7, 8]


def test_a_text_far_over_the_context_is_refused_before_it_is_tokenised() -> None:
    tokenizer, template = Tokenizer.load(SHIPPED), ChatTemplate.load(SHIPPED)
    info = ModelInfo.load(SHIPPED, "tiny", tokenizer=tokenizer, template=template)
    long = "What is len? " * 200_000
    for message in (request(text=long), request(chat=chat(("user", long)))):
        begin = time.perf_counter()
        with pytest.raises(InvalidRequest, match="whatever it says, the model's context holds"):
            prompt_ids(check_generate(message, info, LIMITS).prompt, tokenizer, template)
        assert time.perf_counter() - begin < 0.5  # seconds, where it is tokenised


def test_a_chat_for_a_model_without_a_template_is_refused() -> None:
    from dataclasses import replace

    info = replace(INFO, has_chat_template=False)
    with pytest.raises(InvalidRequest, match="text or as token ids"):
        check_generate(request(chat=chat(("user", "hi"))), info, LIMITS)


def test_a_chat_may_end_without_the_cue_for_an_answer() -> None:
    message = request(chat=chat(("user", "hi")))
    prompt = check_generate(message, INFO, LIMITS).prompt
    assert prompt == ChatPrompt(messages=(ChatMessage("user", "hi"),))
    message.chat.add_generation_prompt = False
    prompt = check_generate(message, INFO, LIMITS).prompt
    assert isinstance(prompt, ChatPrompt)
    assert not prompt.add_generation_prompt


# Tokenize and Detokenize


def test_what_may_be_tokenised() -> None:
    text = check_tokenize(pb.TokenizeRequest(text=""), INFO, LIMITS)
    assert text == TextPrompt(text="")
    without = pb.TokenizeRequest(text="a", add_special_tokens=False)
    assert check_tokenize(without, INFO, LIMITS) == TextPrompt(text="a", add_special_tokens=False)
    as_chat = check_tokenize(pb.TokenizeRequest(chat=chat(("user", "a"))), INFO, LIMITS)
    assert isinstance(as_chat, ChatPrompt)
    with pytest.raises(InvalidRequest, match="give 'text' or 'chat'"):
        check_tokenize(pb.TokenizeRequest(), INFO, LIMITS)
    with pytest.raises(InvalidRequest, match="at most 4194304"):
        check_tokenize(pb.TokenizeRequest(text="x" * (5 << 20)), INFO, LIMITS)
    with pytest.raises(UnknownModel):
        check_tokenize(pb.TokenizeRequest(model="gpt", text="a"), INFO, LIMITS)


def test_what_may_be_detokenised() -> None:
    assert check_detokenize(pb.DetokenizeRequest(token_ids=[1, 2]), INFO, LIMITS) == [1, 2]
    with pytest.raises(UnknownModel):
        check_detokenize(pb.DetokenizeRequest(model="gpt"), INFO, LIMITS)
    with pytest.raises(InvalidRequest, match="at most 10"):
        check_detokenize(
            pb.DetokenizeRequest(token_ids=[1] * 11), INFO, Limits(max_prompt_bytes=10)
        )
    with pytest.raises(InvalidRequest, match=r"penstock\.v1\.DetokenizeRequest"):
        parsed(pb.DetokenizeRequest, b"\xff")
