"""Counts what happens while a simulation runs, and says it at the end."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.types import LoadReport, Role
from simulator.answer import ModelledAnswer
from simulator.setting import Setting, Targets
from simulator.trace import Trace

_GAPS_A_SECOND = 100_000  # gaps are counted in steps of 10 us


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Sums up many values, in seconds; all 0 where there are none."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Says how far a role's workers were taken up, by their load reports; 0: there are none."""

    batch: float  # sequences that run on a worker, mean
    kv_share: float  # of its pool, held by these: mean
    most_kv_share: float  # at any worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    num_requests: int
    num_finished: int
    num_failed: int  # no worker was left, or none had room for it
    num_rejected: int  # at admission, before anything was done for it
    num_good: int  # finished within the targets
    num_moved: int  # tries on another worker, after the first
    num_recomputes: int  # hand-overs that failed: the decode worker computed the prompt
    num_local: int  # placed without a prefill worker
    num_preemptions: int
    duration_s: float  # from the first arrival to the end of the last answer
    ttft: Spread
    itl: Spread  # gaps between tokens; to 10 us, but the mean
    num_prompt_tokens: int
    num_output_tokens: int
    num_hit_tokens: int  # prompt tokens found cached where the prompt was computed
    num_predicted_hit_tokens: int
    num_ideal_hit_tokens: int  # of an endless cache shared by all
    moved_bytes: int  # by hand-overs
    num_fetched_tokens: int  # of prefixes, from other workers
    fetched_bytes: int
    num_failed_fetches: int
    prefill_busy_s: float  # of all prefill workers
    decode_busy_s: float  # a step with one answer counts as one with all that fit: see `Use`
    prefill_use: Use
    decode_use: Use
    gpu_s: float  # of all GPUs, idle or not
    cost: float  # of these, by the setting's price

    @property
    def goodput(self) -> float:
        """Good requests a second."""
        return self.num_good / self.duration_s if self.duration_s else 0.0

    @property
    def hit_share(self) -> float:
        return self.num_hit_tokens / max(1, self.num_prompt_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Holds what percentiles leave out; for figures."""

    arrival_s: Sequence[float]  # of each request that got a token, by when it did
    ttft_s: Sequence[float]  # of the same
    hit_tokens: Sequence[int]  # of the same
    gap_counts: Sequence[tuple[float, int]]  # (seconds between two tokens, how often), rising


class _Uses:
    """Adds up what load reports say."""

    __slots__ = ("_batch", "_kv_share", "_most_kv_share", "_num")

    def __init__(self) -> None:
        self._num = self._batch = 0
        self._kv_share = self._most_kv_share = 0.0

    def add(self, load: LoadReport) -> None:
        kv_share = 1.0 - load.num_free_blocks / load.num_blocks
        self._num += 1
        self._batch += load.num_running
        self._kv_share += kv_share
        self._most_kv_share = max(self._most_kv_share, kv_share)

    def mean(self) -> Use:
        num = max(1, self._num)
        return Use(
            batch=self._batch / num,
            kv_share=self._kv_share / num,
            most_kv_share=self._most_kv_share,
        )


class Ledger:
    """Owned by one simulation; whoever sees something happen writes it here."""

    def __init__(self, targets: Targets) -> None:
        self.num_recomputes = 0
        self.num_moved = 0
        self.num_local = 0
        self.moved_bytes = 0
        self.num_fetched_tokens = 0
        self.num_failed_fetches = 0
        self.num_failed = 0
        self.num_rejected = 0
        self.end_s = 0.0
        self._targets = targets
        self._arrival_s = array("d")
        self._ttft_s = array("d")
        self._hit_tokens = array("q")
        self._gaps: Counter[int] = Counter()  # in steps -> how often
        self._num_good = 0
        self._num_finished = 0
        self._num_prompt = self._num_output = 0
        self._num_predicted = 0
        self._uses = {role: _Uses() for role in Role}
        self._after_first_s = 0.0  # of all answers: from the first to the last token

    def gap(self, seconds: float, num: int = 1) -> None:
        """Notes that so many tokens came this long after the token before them."""
        self._gaps[int(seconds * _GAPS_A_SECOND)] += num

    def gaps(self, ends: Sequence[float], num: int) -> None:
        """Notes so many tokens at each of `ends` but the first, which somebody else counts."""
        gaps = self._gaps
        earlier_s = ends[0]
        for end_s in ends[1:]:
            gaps[int((end_s - earlier_s) * _GAPS_A_SECOND)] += num
            earlier_s = end_s

    def reported(self, role: Role, load: LoadReport) -> None:
        self._uses[role].add(load)

    def first_token(self, answer: ModelledAnswer) -> None:
        arrival_s = answer.traced.arrival_s
        self._arrival_s.append(arrival_s)
        self._ttft_s.append(answer.first_s - arrival_s)
        self._hit_tokens.append(min(answer.num_cached, answer.traced.num_prompt_tokens - 1))
        self._num_predicted += answer.num_predicted

    def finished(self, answer: ModelledAnswer, now_s: float) -> None:
        traced, targets = answer.traced, self._targets
        self._num_finished += 1
        self._num_prompt += traced.num_prompt_tokens
        self._num_output += traced.num_output_tokens
        after_first_s = now_s - answer.first_s
        self._after_first_s += after_first_s
        itl_s = after_first_s / max(1, traced.num_output_tokens - 1)
        ttft_s = answer.first_s - traced.arrival_s
        self._num_good += ttft_s <= targets.ttft_s and itl_s <= targets.itl_s
        self.end_s = now_s

    def report(
        self,
        trace: Trace,
        setting: Setting,
        *,
        busy_s: Mapping[Role, float],
        num_preemptions: int,
        gpu_s: Callable[[float], float],
    ) -> Report:
        """`gpu_s`: those that were taken until then."""
        all_gpu_s = gpu_s(self.end_s)
        return Report(
            num_requests=len(trace.requests),
            num_finished=self._num_finished,
            num_failed=self.num_failed,
            num_rejected=self.num_rejected,
            num_good=self._num_good,
            num_moved=self.num_moved,
            num_recomputes=self.num_recomputes,
            num_local=self.num_local,
            num_preemptions=num_preemptions,
            duration_s=self.end_s,
            ttft=_spread(self._ttft_s),
            itl=self._itl(),
            num_prompt_tokens=self._num_prompt,
            num_output_tokens=self._num_output,
            num_hit_tokens=sum(self._hit_tokens),
            num_predicted_hit_tokens=self._num_predicted,
            num_ideal_hit_tokens=trace.ideal_hit_tokens(),
            moved_bytes=self.moved_bytes,
            num_fetched_tokens=self.num_fetched_tokens,
            fetched_bytes=self.num_fetched_tokens * setting.model.token_bytes,
            num_failed_fetches=self.num_failed_fetches,
            prefill_busy_s=busy_s[Role.PREFILL],
            decode_busy_s=busy_s[Role.DECODE],
            prefill_use=self._uses[Role.PREFILL].mean(),
            decode_use=self._uses[Role.DECODE].mean(),
            gpu_s=all_gpu_s,
            cost=all_gpu_s / 3600.0 * setting.gpu_hour_price,
        )

    def samples(self) -> Samples:
        counts = sorted(self._gaps.items())
        return Samples(
            arrival_s=self._arrival_s,
            ttft_s=self._ttft_s,
            hit_tokens=self._hit_tokens,
            gap_counts=[(steps / _GAPS_A_SECOND, count) for steps, count in counts],
        )

    def _itl(self) -> Spread:
        num = sum(self._gaps.values())
        if not num:
            return Spread(mean_s=0.0, p50_s=0.0, p90_s=0.0, p99_s=0.0)
        marks = _quantiles(sorted(self._gaps.items()), num, (0.5, 0.9, 0.99))
        p50_s, p90_s, p99_s = (mark / _GAPS_A_SECOND for mark in marks)
        return Spread(mean_s=self._after_first_s / num, p50_s=p50_s, p90_s=p90_s, p99_s=p99_s)


def _quantiles(
    counts: Iterable[tuple[int, int]], num: int, shares: Sequence[float]
) -> Iterable[int]:
    """Gives quantiles of values, each with how often it is there, in order."""
    left = [int(share * (num - 1)) for share in shares]
    num_seen = 0
    for value, count in counts:
        num_seen += count
        while left and num_seen > left[0]:
            yield value
            left.pop(0)


def _spread(values: Sequence[float]) -> Spread:
    if not values:
        return Spread(mean_s=0.0, p50_s=0.0, p90_s=0.0, p99_s=0.0)
    ordered = sorted(values)
    last = len(ordered) - 1
    return Spread(
        mean_s=sum(ordered) / len(ordered),
        p50_s=ordered[int(0.5 * last)],
        p90_s=ordered[int(0.9 * last)],
        p99_s=ordered[int(0.99 * last)],
    )
