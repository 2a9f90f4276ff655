"""Which requests are refused before they cost anything, and when they may come again. Changes
nothing.

What counts is what would come of the chosen candidate: its TTFT, and the time between tokens once
its prompt is computed. The decode load of that moment is predicted, not taken as it is now: judged
by the load of now, prefill workers idle while decode workers are full and flood them afterwards.
"""

import math
from typing import Final, NamedTuple

from cluster.types import ErrorQuantiles
from router.load import Load
from router.observed import Observed
from router.policy import Decision, PlacementRequest
from router.policy_settings import Admission, Quantile
from router.pool import PoolSnapshot

MIN_RETRY_S: Final = 0.1  # sooner there is nothing new to predict from
MAX_RETRY_S: Final = 60.0
_MAX_BUSY: Final = 0.95  # of a decode worker's time, for prompts: something is left for its answers
_GROWN: Final = 0.5  # share of its answer by which a sequence has grown, on average


class Errors(NamedTuple):
    """Factors on what is predicted, at the policy's quantile."""

    ttft: float = 1.0
    itl: float = 1.0


class Forecast(NamedTuple):
    """What would come of a request that is taken on."""

    ttft_s: float  # from its arrival
    alone_ttft_s: float  # of these, what its prompt takes by itself
    room_s: float  # from then until the decode worker has room for it: before the second token
    itl_s: float  # mean over its answer
    alone_itl_s: float  # on a worker that decodes nothing else
    turnover_s: float  # in so long all but 1 / e of the answers there will have ended


class Rejection(NamedTuple):
    reason: str  # a sentence without its end
    retry_after_s: float

    @property
    def sentence(self) -> str:
        return f"{self.reason}: try again in {self.retry_after_s:.1f} s."


def rejection(
    request: PlacementRequest,
    decision: Decision,
    snapshot: PoolSnapshot,
    admission: Admission,
    observed: Observed,
) -> Rejection | None:
    """None: it is taken on."""
    queued = num_queued(snapshot)
    if queued >= admission.max_queued:
        over = (queued - admission.max_queued + 1) / queued
        return _rejection(f"{queued:.0f} prompts wait already", over * decision.wait_s)
    decode = snapshot.loads[snapshot.loads.positions[decision.placement.decode]]
    can_ever_fit = request.num_prompt_tokens <= decode.num_total_tokens
    if not (admission.rejects_early and can_ever_fit):  # the worker itself says what is wrong
        return None
    accuracy, quantile, now_s = observed.accuracy, admission.quantile, snapshot.now
    errors = Errors(
        error_factor(
            accuracy.ttft_errors(decision.ttft_s, now_s), decision.prefill_error, quantile
        ),
        # Not the router's own: that has the waits for room in it, which are predicted apart.
        error_factor(None, decode.decode_error, quantile),
    )
    busy_share = observed.local_s.rate(decode.worker, now_s)
    found = forecast(request, decision, decode, errors, observed.lengths.mean, busy_share)
    return broken_promise(request, found, admission)


def is_late(request: PlacementRequest, decision: Decision) -> bool:
    """Whether its first token is predicted to come after the target of its class."""
    most_s = limit_s(request.service_class.ttft_s, decision.prefill_s, 1.0)
    return request.age_s + decision.ttft_s > most_s


def error_factor(errors: ErrorQuantiles | None, known: float, quantile: Quantile) -> float:
    """As the router measured it, where it has; else as the worker reports it, at the ninetieth
    percentile. Never below 1: nobody is admitted for luck."""
    if errors is None:
        return 1.0 if quantile is Quantile.P50 else max(1.0, known)
    of_quantile = {Quantile.P50: errors.p50, Quantile.P90: errors.p90, Quantile.P99: errors.p99}
    return max(1.0, of_quantile[quantile])


def num_queued(snapshot: PoolSnapshot) -> float:
    """Prompts that wait or are being computed, at who computes them."""
    loads = snapshot.loads
    return float(loads.columns.num_prompts[: loads.num_prefill or None].sum())


def forecast(
    request: PlacementRequest,
    decision: Decision,
    decode: Load,
    errors: Errors,
    answer_tokens: float,
    busy_share: float = 0.0,
) -> Forecast:
    """`decode`: the load of the decode worker that was chosen; `busy_share`: of its time, for
    computing prompts, while its answers wait."""
    num_held = request.grain_tokens * request.num_ready.get(decode.worker, 0)
    num_missing = request.num_prompt_tokens - num_held
    then = decode_then(decode, decision.ttft_s, answer_tokens, num_missing)
    own_s = request.num_choices * (decode.d1 * request.num_prompt_tokens + decode.d2)
    # Who computes its prompt where it decodes has waited for room before.
    needs_room = decision.placement.prefill is not None and request.max_tokens > 1
    room_s = then.room_s(request.num_choices) if needs_room else 0.0
    num_steps = max(1.0, min(request.num_output_tokens, request.max_tokens))
    step_s = (then.step_s + own_s) / (1.0 - min(busy_share, _MAX_BUSY))
    return Forecast(
        ttft_s=request.age_s + errors.ttft * decision.ttft_s,
        alone_ttft_s=decision.prefill_s,
        room_s=room_s,
        itl_s=errors.itl * step_s + room_s / num_steps,
        alone_itl_s=decode.d0 + own_s,
        turnover_s=then.turnover_s,
    )


class DecodeThen(NamedTuple):
    """A decode worker after a while, as far as it is decided now."""

    num_sequences: float  # that are there before the request in question, waiting ones included
    num_places: float  # how many of such it can run at once
    turnover_s: float  # of an answer, from its place on
    step_s: float  # with those that run then

    def room_s(self, num_choices: int) -> float:
        """Until there is a place for so many more."""
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
    """As many as its batch, or its memory, has room for."""
    if not decode.is_size_known:
        return decode.max_sequences
    # Used or promised, and what everybody will still write.
    num_used = decode.num_total_tokens - decode.num_free_tokens + num_missing
    each = max(1.0, num_used / (num + 1.0) + _GROWN * answer_tokens)
    return max(1.0, min(decode.max_sequences, decode.num_total_tokens / each))


def broken_promise(
    request: PlacementRequest, found: Forecast, admission: Admission
) -> Rejection | None:
    service = request.service_class
    slack = admission.slack / request.tenant_excess
    most_s = limit_s(service.ttft_s, found.alone_ttft_s, slack)
    # A first token is no good while the second one waits for room.
    begins_s = found.ttft_s + found.room_s
    if begins_s > most_s:
        until = ", until there is room to decode," if found.room_s else ""
        return _rejection(
            f"Class '{service.name}' promises a first token within {service.ttft_s:g} s, and"
            f" {begins_s:.2f} s{until} are predicted{_whose(request)}",
            begins_s - most_s,
        )
    most_s = limit_s(service.itl_s, found.alone_itl_s, slack)
    if request.max_tokens > 1 and found.itl_s > most_s:
        # Above what it takes alone, ITL falls as answers end.
        above_s, allowed_s = found.itl_s - found.alone_itl_s, most_s - found.alone_itl_s
        falls_s = found.turnover_s * math.log(above_s / allowed_s) if allowed_s > 0.0 else math.inf
        return _rejection(
            f"Class '{service.name}' promises {1000 * service.itl_s:g} ms between tokens, and"
            f" {1000 * found.itl_s:.0f} ms are predicted{_whose(request)}",
            falls_s,
        )
    return None


def limit_s(target_s: float, alone_s: float, slack: float) -> float:
    """What may be predicted at most. Who takes longer than half the target even where nothing
    else runs may take twice as long as that: it is late for its size, not for the load."""
    return max(slack * max(target_s, 2.0 * alone_s), alone_s)


def _whose(request: PlacementRequest) -> str:
    if request.tenant_excess <= 1.0:
        return ""
    return f", of whose tenant uses {request.tenant_excess:.1f} times its share"


def _rejection(reason: str, seconds: float) -> Rejection:
    return Rejection(reason, min(max(seconds, MIN_RETRY_S), MAX_RETRY_S))
