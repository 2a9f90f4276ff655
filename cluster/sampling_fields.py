"""The sampling half of a request: every number checked, every default filled in."""

import math
import secrets
import struct
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from cluster.errors import InvalidRequest
from cluster.limits import Limits
from cluster.model_info import ModelInfo
from cluster.types import SamplingParams
from penstock.v1 import inference_pb2 as pb

# Below this a temperature overflows what it divides; 0 means greedy, and is what is meant.
MIN_TEMPERATURE: Final = 1e-6
MAX_LOGIT_BIAS: Final = 100.0


class _Range(NamedTuple):
    low: float
    high: float
    remedy: str = ""

    def __str__(self) -> str:
        return f"between {self.low:g} and {self.high:g}"


_RANGES: Final = {
    "temperature": _Range(0.0, 10.0, "0 is greedy"),
    "top_p": _Range(1e-6, 1.0, "1 keeps all tokens"),
    "min_p": _Range(0.0, 1.0, "0 keeps all tokens"),
    "frequency_penalty": _Range(-2.0, 2.0, "0 is none"),
    "presence_penalty": _Range(-2.0, 2.0, "0 is none"),
    "repetition_penalty": _Range(0.01, 10.0, "1 is none"),
}
_MAX_TOP_K: Final = 2**31 - 1


def sampling_params(request: pb.GenerateRequest, info: ModelInfo, limits: Limits) -> SamplingParams:
    sampling, stop, defaults = request.sampling, request.stop, info.defaults
    top_k = sampling.top_k if sampling.HasField("top_k") else defaults.top_k
    params = SamplingParams(
        seed=sampling.seed if sampling.HasField("seed") else secrets.randbits(63),
        temperature=_temperature(sampling, defaults.temperature),
        top_k=_top_k(top_k, info.vocab_size),
        top_p=_number(sampling, "top_p", defaults.top_p),
        min_p=_number(sampling, "min_p", defaults.min_p),
        frequency_penalty=_number(sampling, "frequency_penalty", 0.0),
        presence_penalty=_number(sampling, "presence_penalty", 0.0),
        repetition_penalty=_number(sampling, "repetition_penalty", defaults.repetition_penalty),
        logit_bias=_logit_bias(sampling, info.vocab_size, limits.max_logit_bias),
        allowed_token_ids=_ids(sampling.allowed_token_ids, "sampling.allowed_token_ids", info),
        bad_token_ids=_ids(sampling.bad_token_ids, "sampling.bad_token_ids", info),
        min_tokens=stop.min_tokens,
        stop_token_ids=_stop_token_ids(stop, info, limits.max_stop_token_ids),
        num_logprobs=_num_logprobs(request.logprobs, "top", info, limits),
        num_prompt_logprobs=_num_logprobs(request.logprobs, "prompt_top", info, limits),
    )
    _check_something_is_left(params, info.vocab_size)
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


def _number(sampling: pb.SamplingParams, name: str, default: float) -> float:
    if not sampling.HasField(name):
        return _as_on_the_wire(default)
    value: float = getattr(sampling, name)
    allowed = _RANGES[name]
    # Compared as the wire has them: 1e-6 there is a little less.
    low, high = _as_on_the_wire(allowed.low), _as_on_the_wire(allowed.high)
    if not math.isfinite(value) or not low <= value <= high:
        raise InvalidRequest(
            f"sampling.{name}", f"{name} is {value:g}; it must lie {allowed} ({allowed.remedy})."
        )
    return value


def _as_on_the_wire(value: float) -> float:
    """Rounded to 32 bits, so that a worker that got it by wire computes the same."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _temperature(sampling: pb.SamplingParams, default: float) -> float:
    temperature = _number(sampling, "temperature", default)
    if 0.0 < temperature < _as_on_the_wire(MIN_TEMPERATURE):
        raise InvalidRequest(
            "sampling.temperature",
            f"temperature is {temperature:g}; the least is {MIN_TEMPERATURE:g}, and 0 is greedy.",
        )
    return temperature


def _top_k(top_k: int, vocab_size: int) -> int:
    if top_k > _MAX_TOP_K:
        raise InvalidRequest(
            "sampling.top_k", f"top_k is {top_k}; give 0 for all tokens, or how many to keep."
        )
    return 0 if top_k >= vocab_size else top_k  # as many as there are is all


def _logit_bias(
    sampling: pb.SamplingParams, vocab_size: int, max_entries: int
) -> tuple[tuple[int, float], ...]:
    check_count(len(sampling.logit_bias), max_entries, "sampling.logit_bias", "logit biases")
    entries = tuple(sorted(sampling.logit_bias.items()))
    for token_id, bias in entries:
        field = f"sampling.logit_bias[{token_id}]"
        if token_id >= vocab_size:
            raise InvalidRequest(
                field, f"Token id {token_id} is not in the model's vocabulary of {vocab_size}."
            )
        if not math.isfinite(bias) or abs(bias) > MAX_LOGIT_BIAS:
            raise InvalidRequest(
                field,
                f"The bias of token {token_id} is {bias:g}; it must lie between "
                f"-{MAX_LOGIT_BIAS:g} and {MAX_LOGIT_BIAS:g}.",
            )
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


def _check_something_is_left(params: SamplingParams, vocab_size: int) -> None:
    """At least one token can be drawn at every position."""
    masked = set(params.bad_token_ids)
    if params.min_tokens:
        masked.update(params.stop_token_ids)
    if params.allowed_token_ids:
        has_any, field = not masked.issuperset(params.allowed_token_ids), "allowed_token_ids"
    else:
        has_any, field = len(masked) < vocab_size, "bad_token_ids"
    if not has_any:
        raise InvalidRequest(
            f"sampling.{field}",
            "No token is left to draw: the bad ones, and the stop tokens before min_tokens, "
            "take away all that are allowed.",
        )
