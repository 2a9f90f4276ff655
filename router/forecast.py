"""Predicts what would come of a request that is placed: its TTFT, the wait for room to decode, the
time between its tokens. Pure.

The decode load is predicted for the moment when the prompt will be done, not taken as it is now:
judged by the load of now, prefill workers idle while decode workers are full, and flood them
afterwards.
"""

import math
from typing import Final, NamedTuple

from router.decision import Decision, PlacementRequest
from router.load import Load

_MAX_BUSY: Final = 0.95  # of a decode worker's time, for prompts: something is left for its answers
_GROWN: Final = 0.5  # share of its answer by which a sequence has grown, on average


class ErrorFactors(NamedTuple):
    """Factors on what is predicted, at the policy's quantile."""

    ttft: float = 1.0
    itl: float = 1.0


class Forecast(NamedTuple):
    """Predicts what would come of a request that is taken on."""

    ttft_s: float  # from its arrival
    wait_s: float  # of these, for others
    alone_ttft_s: float  # of these, what its prompt takes by itself
    room_s: float  # from then until the decode worker has room for it: before the second token
    itl_s: float  # mean over its answer
    alone_itl_s: float  # on a worker that decodes nothing else
    turnover_s: float  # in so long all but 1 / e of the answers there will have ended
    next_place_s: float  # from one place to decode that becomes free there to the next


def forecast(
    request: PlacementRequest,
    decision: Decision,
    decode: Load,
    errors: ErrorFactors,
    answer_tokens: float,
    busy_share: float = 0.0,
    num_ready: int = 0,
) -> Forecast:
    """`decode`: the load of the decode worker that was chosen; `busy_share`: of its time, for
    computing prompts, while its answers wait; `num_ready`: leading grains computed there."""
    num_missing = request.num_prompt_tokens - request.grain_tokens * num_ready
    then = decode_then(decode, decision.ttft_s, answer_tokens, num_missing)
    own_s = request.num_choices * (decode.d1 * request.num_prompt_tokens + decode.d2)
    # Who computes its prompt where it decodes has waited for room before.
    needs_room = decision.placement.prefill is not None and request.max_tokens > 1
    room_s = then.room_s(request.num_choices) if needs_room else 0.0
    num_steps = max(1.0, min(request.num_output_tokens, request.max_tokens))
    step_s = (then.step_s + own_s) / (1.0 - min(busy_share, _MAX_BUSY))
    return Forecast(
        ttft_s=request.age_s + errors.ttft * decision.ttft_s,
        wait_s=errors.ttft * decision.wait_s,
        alone_ttft_s=decision.prefill_s,
        room_s=room_s,
        itl_s=errors.itl * step_s + room_s / num_steps,
        alone_itl_s=decode.d0 + own_s,
        turnover_s=then.turnover_s,
        next_place_s=then.turnover_s / then.num_places,
    )


class DecodeThen(NamedTuple):
    """A decode worker after a while, as far as it is decided now."""

    num_sequences: float  # that are there before the request in question, waiting ones included
    num_places: float  # how many of such it can run at once
    turnover_s: float  # of an answer, from its place on
    step_s: float  # with those that run then

    def room_s(self, num_choices: int) -> float:
        """Says how long until there is a place for so many more."""
        num_too_many = max(0.0, self.num_sequences + num_choices - self.num_places)
        return self.turnover_s * num_too_many / self.num_places


def decode_then(
    decode: Load, after_s: float, answer_tokens: float, num_missing: float
) -> DecodeThen:
    """Whoever is there runs as soon as there is a place, and ends as if lengths had no memory: as
    many in a turnover as have places, while all are taken. `num_missing`: tokens for which the
    request needs memory there."""
    num = decode.num_running + decode.num_waiting
    num_places = _num_places(decode, num, answer_tokens, num_missing)
    mean_context = decode.num_context_tokens / max(1.0, decode.num_running)
    each_s = decode.d1 * mean_context + decode.d2  # that a sequence adds to a step
    turnover_s = max(answer_tokens * (decode.d0 + each_s * min(num, num_places)), 1e-9)
    num_turnovers, num_full = after_s / turnover_s, max(0.0, num / num_places - 1.0)
    if num_turnovers < num_full:
        num_then = num - num_places * num_turnovers
    else:
        num_then = min(num, num_places) * math.exp(num_full - num_turnovers)
    step_s = decode.d0 + each_s * min(num_then, num_places)
    return DecodeThen(num_then, num_places, turnover_s, step_s)


def _num_places(decode: Load, num: float, answer_tokens: float, num_missing: float) -> float:
    """Counts the places that its batch, or its memory, has room for."""
    if not decode.is_size_known:
        return decode.max_sequences
    # Used or promised, and what everybody will still write.
    num_used = decode.num_total_tokens - decode.num_free_tokens + num_missing
    each = max(1.0, num_used / (num + 1.0) + _GROWN * answer_tokens)
    return max(1.0, min(decode.max_sequences, decode.num_total_tokens / each))
