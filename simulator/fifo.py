"""The smallest replay that tells placement rules apart: each worker computes prompts one after
another, holds a least-recently-used cache of whole grains, and decodes for nothing.

The setting of the published comparison that `docs/placement.md` quotes. A prompt is matched by
the rule against what has been computed, and served with what is there when its turn comes.
Fetched grains travel beside the queue, without contention, and the copy stays. Reports are of
this moment.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from cluster.errors import ConfigError
from cluster.types import GrainHash, PrefillCost, WorkerId
from router.load import Column, Load, Loads
from router.pair_costs import CANNOT, PairCosts
from router.policies.rule import Computing, Prompt, Rule
from router.policy_settings import DEFAULT_CLASS
from simulator.fifo_worker import FifoWorker, GrainCache
from simulator.trace import Trace, TraceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class FifoSetting:
    num_workers: int
    cache_tokens: int  # of each worker
    cost: PrefillCost
    fetch_bytes_per_s: float | None = 20e9  # None: nothing can be fetched
    token_bytes: int = 320 * 1024  # KV of one token of a 70-billion model
    ttft_s: float = DEFAULT_CLASS.ttft_s  # target
    speculates: bool = True  # the rule is told of prompts that are placed, not computed yet
    slowness: float = 1.0  # a prompt takes the first worker so many times as long as the others
    is_slowness_known: bool = True  # its cost says so; else it believes that it is like them
    noise: float = 0.0  # sigma of lognormal factors, of mean 1, on what prompts really take

    def __post_init__(self) -> None:
        if not 0.0 < self.slowness < inf or not 0.0 <= self.noise <= 3.0:
            raise ConfigError(
                f"A worker takes a multiple of the others' time, not {self.slowness}, and noise is"
                f" from 0 to 3, not {self.noise}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FifoReport:
    num_requests: int
    mean_ttft_s: float
    p50_ttft_s: float
    p99_ttft_s: float
    predicted_ttft_s: float  # mean, by what the workers said when the prompts were placed
    hit_share: float  # of prompt tokens, fetched ones included
    fetched_bytes: int
    busy_share: float  # of the workers' time until the last prompt was done


class FifoReplay:
    """One run of one rule over one trace. Deterministic: the same seed, the same report."""

    def __init__(self, trace: Trace, rule: Rule[Any], setting: FifoSetting, *, seed: int) -> None:
        self._trace = trace
        self._rule = rule
        self._setting = setting
        self._state = rule.begin(seed)
        self._workers = [self._worker(number) for number in range(setting.num_workers)]
        link = setting.fetch_bytes_per_s
        self._costs = PairCosts.uniform(
            setting.num_workers,
            setup_s=0.0 if link else CANNOT,
            s_per_byte=1.0 / link if link else 0.0,
        )
        self._chances = random.Random(f"noise {seed}")  # not those of the arrivals
        self._ttft_s: list[float] = []
        self._predicted_s = 0.0
        self._num_hits = self._num_fetched = 0

    def run(self, progress: Callable[[int], None] = lambda done: None) -> FifoReport:
        """`progress` hears how many requests are done, now and then."""
        for number, request in enumerate(self._trace.requests):
            self._serve(request)
            if number % 256 == 0:
                progress(number)
        progress(len(self._trace.requests))
        return self._report()

    def _serve(self, request: TraceRequest) -> None:
        now_s, num_tokens = request.arrival_s, request.num_prompt_tokens
        for each in self._workers:
            each.settle(now_s)
        prompt, last_matched = self._prompt(request)
        loads = Loads([self._load(worker, now_s) for worker in self._workers])
        choice, self._state = self._rule.choose(prompt, loads, self._state)
        worker = self._workers[choice.index]
        # More than the rule knew, where an earlier prompt of the queue begins alike.
        promised = self._tokens(worker.promised.match(request.grains))
        num_cached = max(int(prompt.cached[choice.index]), promised)
        num_fetched = self._num_to_fetch(prompt, choice, num_cached)
        num_cached += num_fetched
        done_s = worker.submit(
            request.grains,
            num_new=max(1, num_tokens - num_cached),
            now_s=now_s,
            ready_s=now_s + self._fetch_s(choice, num_fetched),
            service_s=loads[choice.index].prefill_s(num_tokens, num_cached),
            noise=self._noise(),
            behind=last_matched,
        )
        self._ttft_s.append(worker.free_s - now_s)
        self._predicted_s += done_s - now_s
        self._num_hits += min(num_cached, num_tokens - 1)
        self._num_fetched += num_fetched

    def _last_matched(self, request: TraceRequest, cached: Column) -> GrainHash | None:
        depth = int(cached.max()) // self._trace.grain
        return request.grains[depth - 1] if depth else None

    def _num_to_fetch(self, prompt: Prompt, choice: Computing, num_cached: int) -> int:
        if choice.source is None or not self._setting.fetch_bytes_per_s:
            return 0
        return max(0, int(prompt.ready[choice.source]) - num_cached)

    def _fetch_s(self, choice: Computing, num_tokens: int) -> float:
        if choice.source is None or not num_tokens:
            return 0.0
        num_bytes = num_tokens * self._setting.token_bytes
        return self._costs.seconds(choice.index, choice.source, num_bytes)

    def _noise(self) -> float:
        """Draws the noise of this request, wherever it is computed."""
        sigma = self._setting.noise
        return self._chances.lognormvariate(-sigma * sigma / 2, sigma) if sigma else 1.0

    def _worker(self, number: int) -> FifoWorker:
        setting = self._setting
        capacity = setting.cache_tokens // self._trace.grain
        slowness = 1.0 if number else setting.slowness
        known = slowness if setting.is_slowness_known else 1.0
        return FifoWorker(
            WorkerId(f"worker-{number}"),
            setting.cost.times(known),
            GrainCache(capacity),
            GrainCache(capacity),
            factor=slowness / known,
        )

    def _prompt(self, request: TraceRequest) -> tuple[Prompt, GrainHash | None]:
        """And the last grain that any worker holds of it."""
        grains = request.grains
        computed = [self._tokens(worker.computed.match(grains)) for worker in self._workers]
        cached = ready = np.array(computed, dtype=np.float64)
        if self._setting.speculates:
            promised = [self._tokens(worker.promised.match(grains)) for worker in self._workers]
            cached = np.maximum(ready, promised)
        last_matched = self._last_matched(request, cached)
        prompt = Prompt(
            num_tokens=request.num_prompt_tokens,
            cached=cached,
            ready=ready,
            costs=self._costs,
            num_siblings=None if last_matched is None else self._num_behind(last_matched),
            now_s=request.arrival_s,
            late_after_s=self._setting.ttft_s,
            most_late_s=self._setting.ttft_s,
            block_tokens=self._trace.grain,
        )
        return prompt, last_matched

    def _num_behind(self, last_matched: GrainHash) -> Column:
        return np.array([float(worker.behind[last_matched]) for worker in self._workers])

    def _load(self, worker: FifoWorker, now_s: float) -> Load:
        setting, cost = self._setting, worker.cost
        return Load(
            worker=worker.name,
            backlog=((0.0, worker.ahead_s(now_s)),) if worker.queue else (),
            reported_s=now_s,
            num_waiting=len(worker.queue),
            num_prompts=len(worker.queue),
            num_prefill_tokens=worker.num_new,
            num_free_tokens=setting.cache_tokens,
            num_total_tokens=setting.cache_tokens,
            num_unused_tokens=self._tokens(worker.promised.num_unused),
            tail_reuse=worker.promised.tail_reuse,
            token_bytes=setting.token_bytes,
            c0=cost.c0,
            c1=cost.c1,
            c2=cost.c2,
            c3=cost.c3,
        )

    def _tokens(self, num_grains: int) -> int:
        return num_grains * self._trace.grain

    def _report(self) -> FifoReport:
        ttft_s = sorted(self._ttft_s)
        busy_s = sum(worker.busy_s for worker in self._workers)
        span_s = max(worker.free_s for worker in self._workers) * len(self._workers)
        return FifoReport(
            num_requests=len(ttft_s),
            mean_ttft_s=sum(ttft_s) / len(ttft_s),
            p50_ttft_s=ttft_s[len(ttft_s) // 2],
            p99_ttft_s=ttft_s[int(0.99 * len(ttft_s))],
            predicted_ttft_s=self._predicted_s / len(ttft_s),
            hit_share=self._num_hits / self._trace.num_prompt_tokens,
            fetched_bytes=self._num_fetched * self._setting.token_bytes,
            busy_share=busy_s / span_s,
        )
