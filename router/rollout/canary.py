"""Decides whether a policy on trial goes on, takes over, or ends: its figures against those of the
policy in force, over the same time. Pure.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from router.histogram import DurationHistogram
from router.policy_settings import CanarySettings

_P95 = 0.95
_SURE = 2.0  # standard errors: chance alone breaches a guard about once in forty trials


@dataclass(slots=True, eq=False)
class Figures:
    """Counts what became of requests; those taken back or written wrongly count for nobody."""

    ttft: DurationHistogram = field(default_factory=DurationHistogram)
    num_placed: int = 0
    num_ended: int = 0  # finished or failed
    num_errors: int = 0

    @property
    def error_share(self) -> float:
        return self.num_errors / self.num_ended if self.num_ended else 0.0


class Verdict(StrEnum):
    WAIT = "wait"
    PROMOTE = "promote"
    ROLL_BACK = "roll back"


class Judgement(NamedTuple):
    verdict: Verdict
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """All that a judgement rests on. TTFTs contain how long those wait that have no first token:
    a policy that starves its requests is not judged by the lucky ones alone."""

    settings: CanarySettings
    canary: Figures
    baseline: Figures
    age_s: float


def judge(trial: Trial) -> Judgement:
    settings, num = trial.settings, trial.canary.num_placed
    is_guarded = settings.guards.is_any
    is_judged = is_guarded and num >= settings.min_requests
    if is_judged and (breach := _ttft_breach(trial) or _error_breach(trial)):
        return Judgement(Verdict.ROLL_BACK, breach)
    left_s = max(0.0, settings.duration_s - trial.age_s)
    if is_guarded and not is_judged:
        need = f"it waits for requests: {num} of the {settings.min_requests} that a judgement needs"
        rest = f"{left_s:.0f} s to go" if left_s else "its time is up"
        return Judgement(Verdict.WAIT, f"{need}, {rest}.")
    if left_s > 0:
        so_far = "within its guards" if is_guarded else "it has no guards"
        return Judgement(Verdict.WAIT, f"{so_far}, {left_s:.0f} s to go.")
    kept = "kept within its guards" if is_guarded else "had no guard"
    why = f"it {kept} for {trial.age_s:.0f} s and {num} requests"
    return Judgement(Verdict.PROMOTE, why)


def _ttft_breach(trial: Trial) -> str | None:
    most = trial.settings.guards.max_ttft_p95_ratio
    ours, theirs = trial.canary.ttft, trial.baseline.ttft
    if most is None or not ours.count or not theirs.count:
        return None
    # The p95 that it has at least, by the binomial spread of ranks.
    rank = _P95 * ours.count - _SURE * math.sqrt(_P95 * (1 - _P95) * ours.count)
    limit_s = most * theirs.quantile(_P95)
    if ours.at_rank(rank) <= limit_s:
        return None
    return (
        f"its p95 of TTFT is {ours.quantile(_P95):.3f} s, above {most:g} times the"
        f" {theirs.quantile(_P95):.3f} s of the policy in force"
    )


def _error_breach(trial: Trial) -> str | None:
    most, ours, theirs = trial.settings.guards.max_error_ratio, trial.canary, trial.baseline
    if most is None or not ours.num_errors:
        return None
    spread = math.sqrt(_variance(ours) + most**2 * _variance(theirs))
    if ours.error_share - most * theirs.error_share <= _SURE * spread:
        return None
    return (
        f"{100 * ours.error_share:.2g} % of its requests failed, above {most:g} times the"
        f" {100 * theirs.error_share:.2g} % of the policy in force"
    )


def _variance(figures: Figures) -> float:
    """Gives the error share's variance, with one success and one failure more: few are no proof."""
    share = (figures.num_errors + 1) / (figures.num_ended + 2)
    return share * (1 - share) / (figures.num_ended + 2)
