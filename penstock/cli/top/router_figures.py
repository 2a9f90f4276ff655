"""Figures of the routers, from what they told, and what a change of policy did to them. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from penstock.cli.top.samples import label, value
from penstock.cli.top.track import Difference, Track, buckets, increase, rate, share

ERRORS_S: Final = 60.0  # errors are rare: they are counted over this
_CONFIG: Final = "penstock_config_info"
TURNS: Final = (_CONFIG, "generation")  # of a router's track


class TrafficWindow(NamedTuple):
    """What came through within a while; None: nothing that it could be told of."""

    requests_per_s: float | None
    tokens_per_s: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    itl_p50_s: float | None
    itl_p99_s: float | None
    hit_share: float | None
    error_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFigures:
    """None: it is not told."""

    generation: int | None
    digest: str
    canary: int | None  # None: none is on trial
    canary_share: float
    trial_requests: dict[str, float]  # since it began, by side
    trial_errors: dict[str, float]
    is_last_reload_good: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterFigures:
    traffic: TrafficWindow
    errors: dict[str, float]  # of the last minute, by reason
    num_in_flight: float | None
    num_parked: float | None
    policy: PolicyFigures
    is_store_up: bool


class Turn(NamedTuple):
    """TrafficWindow before and after the last change of policy that was seen."""

    generation: int | None
    before_s: float  # of which the figures are
    after_s: float
    before: TrafficWindow
    after: TrafficWindow


def router_figures(tracks: Sequence[Track], window_s: float) -> RouterFigures:
    """Several routers count as one; each says the same of the policy, or soon will."""
    looks = [each.latest.samples for each in tracks if each.latest]
    minute = _over(tracks, max(window_s, ERRORS_S))

    def total(name: str) -> float | None:
        told = [number for each in looks if (number := value(each, name)) is not None]
        return sum(told) if told else None

    return RouterFigures(
        traffic=traffic(_over(tracks, window_s)),
        errors=_errors(minute),
        num_in_flight=total("penstock_requests_in_flight"),
        num_parked=total("penstock_parked_requests"),
        policy=_policy(tracks),
        is_store_up=all(value(each, "penstock_store_up") != 0 for each in looks),
    )


def traffic(of: Sequence[Difference]) -> TrafficWindow:
    ttft = buckets(of, "penstock_time_to_first_token_seconds")
    itl = buckets(of, "penstock_inter_token_seconds")
    return TrafficWindow(
        requests_per_s=rate(of, "penstock_requests_total"),
        tokens_per_s=rate(of, "penstock_generated_tokens_total"),
        ttft_p50_s=ttft.quantile(0.5),
        ttft_p99_s=ttft.quantile(0.99),
        itl_p50_s=itl.quantile(0.5),
        itl_p99_s=itl.quantile(0.99),
        hit_share=share(
            increase(of, "penstock_cached_tokens_total"),
            increase(of, "penstock_prompt_tokens_total"),
        ),
        error_share=share(
            sum(_errors(of).values()),
            increase(of, "penstock_requests_total"),
        ),
    )


def turn(tracks: Sequence[Track]) -> Turn | None:
    """None: the policy has not changed while it was looked at."""
    parted = [each.parted for each in tracks if each.parted]
    if not parted:
        return None
    before = [each.before for each in parted if each.before]
    after = [each.since for each in parted if each.since]
    return Turn(
        generation=_policy(tracks).generation,
        before_s=max((each.seconds for each in before), default=0.0),
        after_s=max((each.seconds for each in after), default=0.0),
        before=traffic(before),
        after=traffic(after),
    )


def _over(tracks: Iterable[Track], window_s: float) -> list[Difference]:
    return [found for each in tracks if (found := each.over(window_s))]


def _errors(of: Sequence[Difference]) -> dict[str, float]:
    """By reason, the most frequent first. Who leaves is no error."""
    found: dict[str, float] = {}
    for each in of:
        for labels, number in each.changes("penstock_requests_total"):
            if number and labels.get("outcome") in ("refused", "failed"):
                reason = labels.get("reason") or "no reason"
                found[reason] = found.get(reason, 0.0) + number
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _policy(tracks: Sequence[Track]) -> PolicyFigures:
    told = next((each.latest.samples for each in tracks if each.latest), {})
    generations = {
        side: value(told, "penstock_policy_generation", side=side) for side in ("active", "canary")
    }
    number = {side: None if each is None else int(each) for side, each in generations.items()}
    return PolicyFigures(
        generation=number["active"],
        digest=label(told, _CONFIG, "hash"),
        canary=number["canary"],
        canary_share=value(told, "penstock_canary_traffic_ratio") or 0.0,
        trial_requests=_by_side(tracks, "penstock_trial_requests_total"),
        trial_errors=_by_side(tracks, "penstock_trial_errors_total"),
        is_last_reload_good=value(told, "penstock_config_last_reload_successful") != 0,
    )


def _by_side(tracks: Sequence[Track], name: str) -> dict[str, float]:
    looks = [each.latest.samples for each in tracks if each.latest]
    return {
        side: sum(value(each, name, side=side) or 0.0 for each in looks)
        for side in ("active", "canary")
    }
