"""Holds what the planner knows: made of what routers keep, for one in this process or elsewhere."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.errors import ConfigError
from cluster.types import Role
from deploy.planner.stretch import MAX_REQUESTS
from router.learned.traffic import Arrival
from router.pool import MemberStatus
from simulator.elastic import Staff
from simulator.fitted import fitted
from simulator.rehearsal import Come
from simulator.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    now_s: float
    begin_s: float  # of the traffic that is looked at
    requests: Sequence[Come]  # in order of arrival
    is_full: bool  # as many as are ever sized for, or from as long ago as always is
    num_judged: int  # of the last window, those of which it is known whether ...
    num_good: int  # ... their targets were met
    queue_s: float  # of all workers: predicted seconds of prompts that wait or are being computed
    num_waiting: int  # requests that no worker could take
    kv_share: float  # of the decode workers' pools, in use
    prefill: Staff
    decode: Staff
    setting: Setting | None  # speeds, memory and links, as fitted; None: not known yet

    def staff(self, role: Role) -> Staff:
        return self.prefill if role is Role.PREFILL else self.decode

    @property
    def duration_s(self) -> float:
        return self.now_s - self.begin_s


def observed(
    arrivals: Iterable[Arrival],
    workers: Sequence[MemberStatus],
    *,
    now_s: float,
    window_s: float,
    most_window_s: float = 0.0,
    prefill: Staff,
    decode: Staff,
    base: Setting,
    num_waiting: int = 0,
    began_s: float = 0.0,
) -> Observation:
    """`most_window_s`: from as long ago, where that is longer; `base`: what workers do not report;
    `began_s`: when the oldest router began to look."""
    begin_s = max(began_s, now_s - max(window_s, most_window_s))
    recent = sorted(
        (each for each in arrivals if each.arrived_at >= begin_s), key=lambda each: each.arrived_at
    )
    lately = [each for each in recent if each.arrived_at >= now_s - window_s]
    verdicts = [good for each in lately if (good := each.is_good(now_s)) is not None]
    reports = [status.report for status in workers]
    pools = [
        1.0 - status.report.num_free_blocks / status.report.num_blocks
        for status in workers
        if status.member.role is Role.DECODE and status.report.num_blocks
    ]
    return Observation(
        now_s=now_s,
        begin_s=begin_s,
        requests=[_come(each) for each in recent],
        is_full=began_s <= now_s - window_s or len(recent) >= MAX_REQUESTS,
        num_judged=len(verdicts),
        num_good=sum(verdicts),
        queue_s=sum(report.backlog[-1][1] for report in reports if report.backlog),
        num_waiting=num_waiting,
        kv_share=sum(pools) / len(pools) if pools else 0.0,
        prefill=prefill,
        decode=decode,
        setting=_setting(base, workers),
    )


def _come(arrival: Arrival) -> Come:
    num_cached = min(arrival.num_cached_tokens, arrival.num_prompt_tokens - 1)
    return Come(
        arrival.arrived_at,
        arrival.num_prompt_tokens,
        arrival.num_prompt_tokens - num_cached,
        arrival.num_output_tokens,
        arrival.target_ttft_s,
        arrival.target_itl_s,
        arrival.num_reusable,
    )


def _setting(base: Setting, workers: Sequence[MemberStatus]) -> Setting | None:
    reported = [(each.member, each.report) for each in workers if each.report_age_s is not None]
    try:
        return fitted(base, reported)
    except ConfigError:  # nobody decodes, or nobody has computed enough to know
        return None
