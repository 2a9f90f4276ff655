"""Says which requests are refused before they cost anything, and when they may come again: those
whose first token, or whose next ones, would come later than their class promises. Changes nothing.
"""

import math
from typing import Final, NamedTuple

from cluster.errors import Overloaded
from cluster.types import ErrorQuantiles
from router.decision import Attempt, Decision, PlacementRequest
from router.forecast import ErrorFactors, Forecast, forecast
from router.learned.observed import Observed
from router.policy_settings import AdmissionRules, Quantile, ServiceClass
from router.pool import PoolSnapshot
from router.shares import TenantUse

MIN_RETRY_S: Final = 0.1  # sooner there is nothing new to predict from
MAX_RETRY_S: Final = 60.0


class Rejection(NamedTuple):
    reason: str  # a sentence without its end
    retry_after_s: float  # if nobody else comes
    spacing_s: float  # after so much more, another one like it would be taken on, too


class EarlyRejection:
    """Refuses, and says when to come again: one after another, as they would be taken on. Told the
    same moment, all would come then and all but one be refused once more."""

    def __init__(self, observed: Observed, tenants: TenantUse) -> None:
        self._observed = observed
        self._tenants = tenants
        self._last_s = -math.inf

    def refusal(self, attempt: Attempt) -> Overloaded | None:
        """None: it is taken on, or nobody is left to refuse it."""
        request, snapshot, _, policy, decision = attempt
        if decision is None:
            return None
        if is_late(request, decision):
            self._tenants.late(snapshot.now)
        rejected = rejection(request, decision, snapshot, policy.admission, self._observed)
        return self._refusal(request.service_class, rejected, snapshot.now)

    def refusal_of_wait(
        self, service: ServiceClass, waits_s: float, admission: AdmissionRules, now: float
    ) -> Overloaded | None:
        """Judges a request that no worker can take before one is back, `waits_s` after it came."""
        return self._refusal(service, rejection_of_wait(service, waits_s, admission), now)

    def _refusal(
        self, service: ServiceClass, rejected: Rejection | None, now_s: float
    ) -> Overloaded | None:
        if rejected is None:
            return None
        self._observed.attainment.of(service.name).num_rejected += 1
        after_s = self.after_s(rejected, now_s)
        sentence = f"{rejected.reason}: try again in {after_s:.1f} s."
        return Overloaded(sentence, retry_after_s=after_s)

    def after_s(self, rejected: Rejection, now_s: float) -> float:
        """Says when who is refused may come again, from now."""
        first_s, next_s = now_s + rejected.retry_after_s, self._last_s + rejected.spacing_s
        self._last_s = min(max(first_s, next_s), now_s + MAX_RETRY_S)
        return self._last_s - now_s


def rejection(
    request: PlacementRequest,
    decision: Decision,
    snapshot: PoolSnapshot,
    admission: AdmissionRules,
    observed: Observed,
) -> Rejection | None:
    """None: it is taken on."""
    queued = num_queued(snapshot)
    if queued >= admission.max_queued:
        over = (queued - admission.max_queued + 1) / queued
        return _rejection(
            f"{queued:.0f} prompts wait already", over * decision.wait_s, decision.wait_s / queued
        )
    position = snapshot.loads.positions[decision.placement.decode]
    decode = snapshot.loads[position]
    can_ever_fit = request.num_prompt_tokens <= decode.num_total_tokens
    is_idle = decision.wait_s <= 0.0 and decode.num_in_flight == 0  # later it is no faster
    if is_idle or not can_ever_fit or not admission.rejects_early:
        return None  # who never fits, hears it from the worker
    quantile, now_s = admission.quantile, snapshot.now
    measured = observed.accuracy.ttft_errors(decision.ttft_s, now_s)
    ttft_factor = error_factor(measured, decision.prefill_error, quantile)
    # Not the router's own: that has the waits for room in it, which are predicted apart.
    errors = ErrorFactors(ttft_factor, error_factor(None, decode.decode_error, quantile))
    num_tokens, num_ready = observed.lengths.mean, request.num_ready_at(position)
    busy_share = observed.local_s.rate(decode.worker, now_s)
    found = forecast(request, decision, decode, errors, num_tokens, busy_share, num_ready)
    rejected = broken_promise(request, found, admission)
    if rejected is None:
        return None
    # All workers become free by and by, not only the one that would have been chosen.
    num_workers = snapshot.loads.num_prefill or len(snapshot.loads)
    return rejected._replace(spacing_s=rejected.spacing_s / num_workers)


def rejection_of_wait(
    service: ServiceClass, waits_s: float, admission: AdmissionRules
) -> Rejection | None:
    """The same of a request that no worker can take before one is back, `waits_s` after it came."""
    most_s = admission.slack * service.ttft_s
    if not admission.rejects_early or waits_s <= most_s:
        return None
    return _rejection(
        f"Class '{service.name}' promises a first token within {service.ttft_s:g} s, and a decode"
        f" worker is expected back {waits_s:.2f} s after the request came",
        waits_s - most_s,
        0.0,
    )


def is_late(request: PlacementRequest, decision: Decision) -> bool:
    """Tells whether its first token is predicted to come after the target of its class."""
    most_s = limit_s(request.service_class.ttft_s, decision.prefill_s, 1.0)
    return request.age_s + decision.ttft_s > most_s


def error_factor(errors: ErrorQuantiles | None, known: float, quantile: Quantile) -> float:
    """Gives the factor as the router measured it, where it has; else as the worker reports it, at
    the ninetieth percentile. Never below 1: nobody is admitted for luck."""
    if errors is None:
        return 1.0 if quantile is Quantile.P50 else max(1.0, known)
    of_quantile = {Quantile.P50: errors.p50, Quantile.P90: errors.p90, Quantile.P99: errors.p99}
    return max(1.0, of_quantile[quantile])


def num_queued(snapshot: PoolSnapshot) -> float:
    """Prompts that wait or are being computed, at who computes them."""
    loads = snapshot.loads
    return float(loads.columns.num_prompts[: loads.num_prefill or None].sum())


def broken_promise(
    request: PlacementRequest, found: Forecast, admission: AdmissionRules
) -> Rejection | None:
    service = request.service_class
    slack = admission.slack / request.tenant_excess
    most_s = limit_s(service.ttft_s, found.alone_ttft_s, slack)
    # A first token is no good while the second one waits for room.
    begins_s = found.ttft_s + found.room_s
    if begins_s > most_s and found.wait_s + found.room_s > 0.0:
        until = ", until there is room to decode," if found.room_s else ""
        return _rejection(
            f"Class '{service.name}' promises a first token within {service.ttft_s:g} s, and"
            f" {begins_s:.2f} s{until} are predicted{_whose(request)}",
            begins_s - most_s,
            found.next_place_s if found.room_s else found.alone_ttft_s,
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
            found.next_place_s,
        )
    return None


def limit_s(target_s: float, alone_s: float, slack: float) -> float:
    """Says what may be predicted at most. Who takes longer than half the target even where nothing
    else runs may take twice as long as that: it is late for its size, not for the load."""
    return max(slack * max(target_s, 2.0 * alone_s), alone_s)


def _whose(request: PlacementRequest) -> str:
    if request.tenant_excess <= 1.0:
        return ""
    return f", of whose tenant uses {request.tenant_excess:.1f} times its share"


def _rejection(reason: str, seconds: float, spacing_s: float) -> Rejection:
    return Rejection(reason, min(max(seconds, MIN_RETRY_S), MAX_RETRY_S), spacing_s)
