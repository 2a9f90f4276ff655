"""The sampling half of a request: every number checked, every default filled in."""

import secrets
from collections.abc import Collection, Sequence
from typing import Final

from cluster.errors import InvalidRequest
from cluster.limits import Limits
from cluster.types import SamplingParams
from penstock.v1 import inference_pb2 as pb
from router.front.field_rules import RULES, as_on_the_wire, plain_rules, plain_values
from router.front.model_info import ModelInfo

# Below this a temperature overflows what it divides; 0 means greedy, and is what is meant.
MIN_TEMPERATURE: Final = 1e-6

_PLAIN: Final = plain_rules(SamplingParams)


def sampling_params(request: pb.GenerateRequest, info: ModelInfo, limits: Limits) -> SamplingParams:
    sampling = request.sampling
    plain = plain_values(request, _PLAIN, info.defaults)
    _check_divides(plain["temperature"])
    if plain["top_k"] >= info.vocab_size:  # as many as there are is all
        plain["top_k"] = 0
    params = SamplingParams(
        seed=sampling.seed if sampling.HasField("seed") else secrets.randbits(63),
        logit_bias=_logit_bias(sampling, info.vocab_size, limits.max_logit_bias),
        allowed_token_ids=_ids(sampling.allowed_token_ids, "sampling.allowed_token_ids", info),
        bad_token_ids=_ids(sampling.bad_token_ids, "sampling.bad_token_ids", info),
        stop_token_ids=_stop_token_ids(request.stop, info, limits.max_stop_token_ids),
        num_logprobs=_num_logprobs(request.logprobs, "top", info, limits),
        num_prompt_logprobs=_num_logprobs(request.logprobs, "prompt_top", info, limits),
        **plain,
    )
    check_something_is_left(params, info.vocab_size)
    return params


def check_ids(ids: Collection[int], field: str, vocab_size: int) -> None:
    """Each id has a token; the first that has none is named."""
    if ids and max(ids) >= vocab_size:
        position, token_id = next((n, i) for n, i in enumerate(ids) if i >= vocab_size)
        raise InvalidRequest(
            f"{field}[{position}]",
            f"Token id {token_id} is not in the model's vocabulary of {vocab_size}.",
        )


def check_count(num: int, maximum: int, field: str, noun: str) -> None:
    if num > maximum:
        raise InvalidRequest(field, f"{num} {noun} were given; at most {maximum} are allowed.")


def check_texts(
    texts: Sequence[str], field: str, noun: str, max_texts: int, max_bytes: int
) -> None:
    """Refuses too many, and any that is empty or too long."""
    check_count(len(texts), max_texts, field, f"{noun}s")
    for position, text in enumerate(texts):
        if not text:
            raise InvalidRequest(f"{field}[{position}]", f"A {noun} is empty: leave it out.")
        if (num_bytes := len(text.encode())) > max_bytes:
            raise InvalidRequest(
                f"{field}[{position}]",
                f"A {noun} has {num_bytes} bytes; at most {max_bytes} are allowed.",
            )


def _check_divides(temperature: float) -> None:
    if 0.0 < temperature < as_on_the_wire(MIN_TEMPERATURE):
        raise InvalidRequest(
            "sampling.temperature",
            f"temperature is {temperature:g}; the least is {MIN_TEMPERATURE:g}, and 0 is greedy.",
        )


def _logit_bias(
    sampling: pb.SamplingParams, vocab_size: int, max_entries: int
) -> tuple[tuple[int, float], ...]:
    rule = RULES["sampling.logit_bias"]
    check_count(len(sampling.logit_bias), max_entries, rule.path, "logit biases")
    entries = tuple(sorted(sampling.logit_bias.items()))
    for token_id, bias in entries:
        field = f"{rule.path}[{token_id}]"
        if token_id >= vocab_size:
            raise InvalidRequest(
                field, f"Token id {token_id} is not in the model's vocabulary of {vocab_size}."
            )
        rule.check(bias, field, f"The bias of token {token_id}")
    return entries


def _ids(ids: Sequence[int], field: str, info: ModelInfo) -> tuple[int, ...]:
    check_count(len(ids), info.vocab_size, field, "token ids")
    check_ids(ids, field, info.vocab_size)
    return tuple(dict.fromkeys(ids))


def _stop_token_ids(stop: pb.LengthAndStop, info: ModelInfo, max_ids: int) -> tuple[int, ...]:
    check_count(len(stop.stop_token_ids), max_ids, "stop.stop_token_ids", "stop tokens")
    check_ids(stop.stop_token_ids, "stop.stop_token_ids", info.vocab_size)
    end_token_ids = () if stop.ignore_eos else info.end_token_ids
    return tuple(dict.fromkeys((*stop.stop_token_ids, *end_token_ids)))


def _num_logprobs(
    logprobs: pb.LogprobOptions, name: str, info: ModelInfo, limits: Limits
) -> int | None:
    if not logprobs.HasField(name):
        return None
    num: int = getattr(logprobs, name)
    maximum = min(limits.max_logprobs, info.vocab_size)
    if num > maximum:
        raise InvalidRequest(
            f"logprobs.{name}", f"{num} alternatives were asked for; the most is {maximum}."
        )
    return num


def check_something_is_left(params: SamplingParams, vocab_size: int) -> None:
    """Refuses parameters unless at least one token can be drawn at every position, whatever was
    drawn before."""
    hidden = set(params.bad_token_ids)
    if params.min_tokens:
        hidden.update(params.stop_token_ids)
    field = "allowed_token_ids" if params.allowed_token_ids else "bad_token_ids"
    if _hides_all(hidden, params, vocab_size):
        raise InvalidRequest(
            f"sampling.{field}",
            "No token is left to draw: the bad ones, and the stop tokens before min_tokens, "
            "take away all that are allowed.",
        )
    ends = {ids[-1] for ids in params.bad_word_ids}
    if ends and _hides_all(hidden | ends, params, vocab_size):
        raise InvalidRequest(
            "sampling.bad_words",
            "There may be no token left to draw: all that are allowed end a bad word. Allow one "
            "more token, or give fewer bad words.",
        )


def _hides_all(hidden: Collection[int], params: SamplingParams, vocab_size: int) -> bool:
    if params.allowed_token_ids:
        return set(params.allowed_token_ids).issubset(hidden)
    return len(hidden) >= vocab_size
