"""Policies, their figures and explanations as messages."""

from collections.abc import Iterator, Sequence

from penstock.v1 import worker_pb2 as pb
from router.explain import Candidate, Explanation, described, explain
from router.placer import Placer
from router.policies.registry import name_of
from router.policy_life.keeper import Came, Change, PolicyKeeper
from router.records import Phases, Record, Records
from router.rollout.canary import Figures, Judgement, Trial
from router.rollout.generations import LivePolicy
from router.rollout.history import PastChange
from router.rollout.rollout import Generation
from router.rollout.shadow import Shadow
from router.slow import SlowRecord

_P95 = 0.95
_OUTCOMES = {
    Came.UNCHANGED: pb.POLICY_OUTCOME_UNCHANGED,
    Came.APPLIED: pb.POLICY_OUTCOME_APPLIED,
    Came.CANARY: pb.POLICY_OUTCOME_CANARY,
    Came.ROLLED_BACK: pb.POLICY_OUTCOME_ROLLED_BACK,
}


def change_to_pb(change: Change) -> pb.PolicyChange:
    return pb.PolicyChange(
        outcome=_OUTCOMES[change.came],
        generation=generation_to_pb(change.generation),
        warnings=change.warnings,
        changes=change.changes,
    )


def generation_to_pb(generation: Generation | None) -> pb.PolicyGeneration | None:
    if generation is None:
        return None
    return pb.PolicyGeneration(
        number=generation.number,
        name=generation.name,
        digest=generation.digest,
        source=generation.source,
        unix_seconds=generation.at_s,
        text=generation.text,
    )


def history_to_pb(history: Sequence[PastChange]) -> pb.PolicyHistoryResponse:
    return pb.PolicyHistoryResponse(
        changes=[
            pb.PastPolicyChange(
                unix_seconds=change.at_s,
                generation=change.number,
                name=change.name,
                digest=change.digest,
                why=change.why,
                by=change.author.name,
                address=change.author.address,
            )
            for change in history
        ]
    )


def status_to_pb(keeper: PolicyKeeper, placer: Placer) -> pb.PolicyStatusResponse:
    rollout, reloads, judged = keeper.rollout, keeper.reloads, keeper.judgement()
    generations, in_flight = placer.generations, list(placer.in_flight)
    return pb.PolicyStatusResponse(
        active=generation_to_pb(rollout.active),
        previous=generation_to_pb(rollout.previous),
        canary=generation_to_pb(rollout.canary),
        trial=_trial_to_pb(*judged) if judged else None,
        shadow=_shadow_to_pb(generations.active.shadow),
        reload=pb.ReloadStatus(
            last_reload_successful=reloads.is_last_good,
            last_reload_success_timestamp_seconds=reloads.last_good_at_s,
            error=reloads.error,
            attempts=reloads.num_attempts,
            failures=reloads.num_failures,
        ),
        last_change=rollout.why,
        traffic=[_traffic_to_pb(live, in_flight) for live in generations.remembered],
        regret=_regret_to_pb(placer.records),
        file=str(keeper.file.path) if keeper.file else "",
        store_away=keeper.is_store_away,
    )


def record_to_pb(record: Record, now: float, most: int) -> pb.ExplainResponse:
    policy = record.live.policy
    first = record.attempts[0].request if record.attempts else None
    return pb.ExplainResponse(
        request_id=record.request_id,
        generation=pb.PolicyGeneration(number=record.live.number, name=policy.name),
        service_class=first.service_class.name if first else "",
        prompt_tokens=first.num_prompt_tokens if first else 0,
        predicted_output_tokens=first.num_output_tokens if first else 0.0,
        age_seconds=now - record.arrived_at,
        tries=list(_tries(record, most)),
        outcome=_outcome_to_pb(record),
    )


def slow_to_pb(
    found: Sequence[SlowRecord], now: float, num_looked_at: int, *, are_kept: bool
) -> pb.SlowRequestsResponse:
    return pb.SlowRequestsResponse(
        requests=[_slow_to_pb(each, now) for each in found],
        looked_at=num_looked_at,
        remembered=are_kept,
    )


def _slow_to_pb(slow: SlowRecord, now: float) -> pb.SlowRequest:
    record, targets = slow.record, slow.targets
    last = record.attempts[-1] if record.attempts else None
    placement = last.decision.placement if last and last.decision else None
    outcome = _outcome_to_pb(record)
    outcome.ClearField("error")  # its sentence may be of the request's own
    return pb.SlowRequest(
        request_id=record.request_id,
        age_seconds=now - record.arrived_at,
        outcome=outcome,
        lateness=slow.lateness,
        service_class=targets.name,
        target_ttft_seconds=targets.ttft_s,
        target_itl_seconds=targets.itl_s,
        itl_seconds=slow.itl_s,
        prompt_tokens=last.request.num_prompt_tokens if last else 0,
        generation=record.live.number,
        decode=placement.decode if placement else "",
        prefill=(placement.prefill or "") if placement else "",
        source=(placement.source or "") if placement else "",
        phases=_phases_to_pb(record.phases) if record.phases else None,
    )


def _phases_to_pb(phases: Phases) -> pb.RequestPhases:
    return pb.RequestPhases(
        router_seconds=phases.router_s,
        queue_seconds=phases.queue_s,
        prefill_seconds=phases.prefill_s,
        transfer_seconds=phases.transfer_s,
        decode_seconds=phases.decode_s,
    )


def _trial_to_pb(trial: Trial, judgement: Judgement) -> pb.CanaryStatus:
    settings, guards = trial.settings, trial.settings.guards
    return pb.CanaryStatus(
        traffic_share=settings.traffic_share,
        age_seconds=trial.age_s,
        duration_seconds=settings.duration_s,
        min_requests=settings.min_requests,
        max_ttft_p95_ratio=guards.max_ttft_p95_ratio,
        max_error_ratio=guards.max_error_ratio,
        canary=_figures_to_pb(trial.canary),
        baseline=_figures_to_pb(trial.baseline),
        verdict=judgement.why,
    )


def _figures_to_pb(figures: Figures) -> pb.TrafficFigures:
    return pb.TrafficFigures(
        requests=figures.num_placed,
        errors=figures.num_errors,
        ttft_p95_seconds=figures.ttft.quantile(_P95),
    )


def _shadow_to_pb(shadow: Shadow | None) -> pb.ShadowStatus | None:
    if shadow is None:
        return None
    num = max(1, shadow.num_evaluated)
    return pb.ShadowStatus(
        sample_share=shadow.sample_share,
        evaluated=shadow.num_evaluated,
        disagreed=shadow.num_disagreed,
        ttft_difference_seconds=shadow.ttft_difference_s / num,
        price_difference_seconds=shadow.price_difference_s / num,
        failed=shadow.num_failed,
    )


def _traffic_to_pb(live: LivePolicy, in_flight: list[Record]) -> pb.GenerationTraffic:
    return pb.GenerationTraffic(
        number=live.number,
        placed=live.since_start.num_placed,
        in_flight=sum(record.live is live for record in in_flight),
        errors=live.since_start.num_errors,
    )


def _regret_to_pb(records: Records) -> pb.RegretStatus:
    regret = records.regret
    num = regret.dearer.count
    return pb.RegretStatus(
        evaluated=num,
        mean_seconds=regret.sum_s / max(1, num),
        p90_seconds=regret.dearer.quantile(0.9),
        mean_ttft_error_seconds=regret.ttft_error_s / max(1, num),
    )


def _tries(record: Record, most: int) -> Iterator[pb.ExplainedTry]:
    for attempt in record.attempts:
        found = explain(attempt, most=most)
        told = _explanation_to_pb(found)
        told.rule = name_of(attempt.policy.rule)
        if attempt.decision is not None:
            told.predicted_ttft_seconds = attempt.request.age_s + attempt.decision.ttft_s
            told.predicted_itl_seconds = attempt.decision.itl_s
            told.due_seconds = attempt.decision.due_s
        if (hindsight := record.hindsight(attempt)) is not None:
            told.regret_seconds = hindsight.regret_s
            told.best_afterwards = described(hindsight.best.placement)
        yield told


def _explanation_to_pb(found: Explanation) -> pb.ExplainedTry:
    return pb.ExplainedTry(
        candidates=[_candidate_to_pb(candidate) for candidate in found.candidates],
        num_candidates=found.num_candidates,
        left_out=[pb.LeftOut(worker=worker, reason=why) for worker, why in found.left_out],
        sentence=found.sentence,
        margin_seconds=found.margin_s,
        num_tied=found.num_tied,
    )


def _candidate_to_pb(candidate: Candidate) -> pb.Candidate:
    placement = candidate.placement
    return pb.Candidate(
        decode=placement.decode,
        prefill=placement.prefill or "",
        source=placement.source or "",
        cached_tokens=candidate.num_cached_tokens,
        price_seconds=candidate.price_s,
        terms=[pb.PriceTerm(name=name, seconds=seconds) for name, seconds in candidate.terms],
        chosen=candidate.is_chosen,
    )


def _outcome_to_pb(record: Record) -> pb.RequestOutcome:
    ended_at = record.ended_at
    return pb.RequestOutcome(
        state=record.fate,
        error=record.error,
        ttft_seconds=record.ttft_s,
        cached_tokens=record.num_cached_tokens,
        tokens=record.num_tokens,
        moved=max(0, len(record.attempts) - 1),
        total_seconds=None if ended_at is None else ended_at - record.arrived_at,
    )
