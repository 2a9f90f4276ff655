"""The smallest replay that tells placement rules apart: each worker computes prompts one after
another, holds a least-recently-used cache of whole grains, and decodes for nothing.

The setting of the published comparison that `docs/placement.md` quotes. A prompt is matched by
the rule against what has been computed, and served with what is there when its turn comes.
Fetched grains travel beside the queue, without contention, and the copy stays.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.types import GrainHash, PrefillCost, WorkerId
from router.load import Load, Loads
from router.pair_costs import PairCosts
from router.policies.rule import Prompt, Rule
from simulator.trace import Trace, TraceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class FifoSetting:
    num_workers: int
    cache_tokens: int  # of each worker
    cost: PrefillCost
    fetch_bytes_per_s: float = 20e9
    token_bytes: int = 320 * 1024  # KV of one token of a 70-billion model
    speculates: bool = True  # the rule is told of prompts that are placed, not computed yet


@dataclass(frozen=True, slots=True, kw_only=True)
class FifoReport:
    num_requests: int
    mean_ttft_s: float
    p50_ttft_s: float
    p99_ttft_s: float
    hit_share: float  # of prompt tokens, fetched ones included
    fetched_bytes: int
    busy_share: float  # of the workers' time while requests came


class _Cache:
    """Grains, the least recently used first; of one chain the leaf goes before its root."""

    __slots__ = ("_capacity", "_grains")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._grains: OrderedDict[GrainHash, None] = OrderedDict()

    @property
    def num_unused(self) -> int:
        return self._capacity - len(self._grains)

    def match(self, grains: Sequence[GrainHash]) -> int:
        held, depth = self._grains, 0
        for grain in grains:
            if grain not in held:
                break
            depth += 1
        return depth

    def put(self, grains: Sequence[GrainHash]) -> None:
        held = self._grains
        for grain in reversed(grains):
            held[grain] = None
            held.move_to_end(grain)
        while len(held) > self._capacity:
            held.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Queued:
    done_s: float
    grains: tuple[GrainHash, ...]
    num_new: int


@dataclass(slots=True, eq=False)
class _Worker:
    name: WorkerId
    computed: _Cache  # what a router is told of
    promised: _Cache  # with what is queued: what is there when the next one's turn comes
    queue: deque[_Queued] = field(default_factory=deque)
    free_s: float = 0.0
    busy_s: float = 0.0
    num_new: int = 0  # prompt tokens queued

    def settle(self, now_s: float) -> None:
        """Takes in what has been computed until now."""
        while self.queue and self.queue[0].done_s <= now_s:
            done = self.queue.popleft()
            self.num_new -= done.num_new
            self.computed.put(done.grains)


class FifoReplay:
    """One run of one rule over one trace. Deterministic: the same seed, the same report."""

    def __init__(self, trace: Trace, rule: Rule[Any], setting: FifoSetting, *, seed: int) -> None:
        self._trace = trace
        self._rule = rule
        self._setting = setting
        self._state = rule.begin(seed)
        capacity = setting.cache_tokens // trace.grain
        self._workers = [
            _Worker(WorkerId(f"worker-{i}"), _Cache(capacity), _Cache(capacity))
            for i in range(setting.num_workers)
        ]
        self._costs = PairCosts.uniform(
            setting.num_workers, setup_s=0.0, s_per_byte=1.0 / setting.fetch_bytes_per_s
        )
        self._ttft_s: list[float] = []
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
        now_s = request.arrival_s
        for each in self._workers:
            each.settle(now_s)
        prompt = self._prompt(request)
        loads = Loads([self._load(worker, now_s) for worker in self._workers])
        choice, self._state = self._rule.choose(prompt, loads, self._state)
        worker, load = self._workers[choice.index], loads[choice.index]
        # More than the rule knew, where an earlier prompt of the queue begins alike.
        promised = self._tokens(worker.promised.match(request.grains))
        num_cached = max(int(prompt.cached[choice.index]), promised)
        fetch_s = 0.0
        if choice.source is not None and prompt.ready[choice.source] > num_cached:
            num_fetched = int(prompt.ready[choice.source]) - num_cached
            num_cached += num_fetched
            num_bytes = num_fetched * self._setting.token_bytes
            fetch_s = self._costs.seconds(choice.index, choice.source, num_bytes)
            self._num_fetched += num_fetched
        service_s = load.prefill_s(request.num_prompt_tokens, num_cached)
        self._queue(worker, request, max(now_s + fetch_s, worker.free_s) + service_s, num_cached)
        worker.busy_s += service_s
        self._ttft_s.append(worker.free_s - now_s)
        self._num_hits += min(num_cached, request.num_prompt_tokens - 1)

    def _prompt(self, request: TraceRequest) -> Prompt:
        grains = request.grains
        computed = [self._tokens(worker.computed.match(grains)) for worker in self._workers]
        cached = ready = np.array(computed, dtype=np.float64)
        if self._setting.speculates:
            promised = [self._tokens(worker.promised.match(grains)) for worker in self._workers]
            cached = np.maximum(ready, promised)
        return Prompt(
            num_tokens=request.num_prompt_tokens,
            cached=cached,
            ready=ready,
            costs=self._costs,
            now_s=request.arrival_s,
            block_tokens=self._trace.grain,
        )

    def _load(self, worker: _Worker, now_s: float) -> Load:
        setting, cost = self._setting, self._setting.cost
        return Load(
            worker=worker.name,
            backlog=((0.0, worker.free_s - now_s),) if worker.free_s > now_s else (),
            reported_s=now_s,
            num_waiting=len(worker.queue),
            num_prompts=len(worker.queue),
            num_prefill_tokens=worker.num_new,
            num_free_tokens=setting.cache_tokens,
            num_total_tokens=setting.cache_tokens,
            num_unused_tokens=self._tokens(worker.promised.num_unused),
            token_bytes=setting.token_bytes,
            c0=cost.c0,
            c1=cost.c1,
            c2=cost.c2,
            c3=cost.c3,
        )

    def _queue(
        self, worker: _Worker, request: TraceRequest, done_s: float, num_cached: int
    ) -> None:
        num_new = max(1, request.num_prompt_tokens - num_cached)
        worker.free_s = done_s
        worker.num_new += num_new
        worker.promised.put(request.grains)
        worker.queue.append(_Queued(done_s, request.grains, num_new))

    def _tokens(self, num_grains: int) -> int:
        return num_grains * self._trace.grain

    def _report(self) -> FifoReport:
        ttft_s = sorted(self._ttft_s)
        busy_s = sum(worker.busy_s for worker in self._workers)
        span_s = max(self._trace.duration_s, 1e-9) * len(self._workers)
        return FifoReport(
            num_requests=len(ttft_s),
            mean_ttft_s=sum(ttft_s) / len(ttft_s),
            p50_ttft_s=ttft_s[len(ttft_s) // 2],
            p99_ttft_s=ttft_s[int(0.99 * len(ttft_s))],
            hit_share=self._num_hits / self._trace.num_prompt_tokens,
            fetched_bytes=self._num_fetched * self._setting.token_bytes,
            busy_share=busy_s / span_s,
        )
