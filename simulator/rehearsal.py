"""Rehearses how a cluster of so many workers would have done with a while's traffic: a replay that
is coarser than the simulator and takes some 20 us a request, so that dozens of sizes can be tried.

Each worker has its prompts in the order in which they are due. Answers on a decode worker share its
steps, and stand still while it computes a prompt. Who computes is chosen by the default rule's
terms: wait, lateness, and what answers lose that cannot spare it.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from simulator.setting import Setting, WorkerMake

_MOST_KV: Final = 0.95  # of a pool: blocks are not filled to the end
_LATE_ANSWER: Final = 0.5  # against a late first token


@dataclass(frozen=True, slots=True)
class Come:
    """A request that came, as it turned out, and what it was promised."""

    arrived_at: float
    num_prompt: int
    num_new: int  # of these, not cached where it was computed
    num_output: float
    ttft_s: float  # targets
    itl_s: float
    num_reusable: tuple[int, ...] = ()  # tokens of it that caches of rising sizes would hold


@dataclass(slots=True, eq=False)
class _Rehearsed:
    """A request on its way."""

    come: Come
    due_s: float
    left_s: float  # of its prompt
    decode: "_Decode"
    hand_over_s: float  # 0: its prompt is computed where it decodes
    first_s: float = inf


class _Queue:
    """The prompts of one worker, in the order in which they are due; a later one that is due sooner
    goes first."""

    __slots__ = ("_jobs", "_num", "now_s")

    def __init__(self) -> None:
        self._jobs: list[tuple[float, int, _Rehearsed]] = []
        self._num = 0
        self.now_s = 0.0

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def wait_s(self, due_s: float) -> float:
        return sum(job.left_s for at_s, _, job in self._jobs if at_s <= due_s)

    def put(self, job: _Rehearsed) -> None:
        self._num += 1
        heapq.heappush(self._jobs, (job.due_s, self._num, job))

    def run(self, until_s: float) -> _Rehearsed | None:
        """Computes until a prompt is done, and returns it, or until then."""
        if not self._jobs:
            self.now_s = max(self.now_s, until_s)
            return None
        job = self._jobs[0][2]
        done_s = self.now_s + job.left_s
        if done_s > until_s:
            job.left_s = done_s - until_s
            self.now_s = until_s
            return None
        heapq.heappop(self._jobs)
        self.now_s = job.first_s = done_s
        return job


class _Decode:
    """The answers of one decode worker. Its clock counts steps: an answer of n tokens ends n steps
    after it joined, however long they take."""

    __slots__ = (
        "_ends",
        "_make",
        "_num_context",
        "_num_put",
        "_steps",
        "_waiting",
        "num_placed",
        "placed_context",
        "queue",
    )

    def __init__(self, make: WorkerMake) -> None:
        self.queue = _Queue()
        self._make = make
        self._steps = 0.0
        self._ends: list[tuple[float, int, _Rehearsed]] = []
        self._waiting: list[tuple[float, int, _Rehearsed]] = []  # to join, by when they can
        self._num_context = 0.0  # of those that run
        self._num_put = 0
        self.num_placed = 0  # that have not ended, whether they run or not
        self.placed_context = 0.0

    def expect(self, job: _Rehearsed) -> None:
        """It was placed here, and joins later."""
        self.num_placed += 1
        self.placed_context += _context(job)

    @property
    def step_s(self) -> float:
        return self._make.decode_cost.seconds(round(self._num_context), len(self._ends))

    def join(self, job: _Rehearsed, at_s: float) -> None:
        self._num_put += 1
        heapq.heappush(self._waiting, (at_s, self._num_put, job))

    def run(self, until_s: float) -> list[tuple[_Rehearsed, float]]:
        """Runs until then; returns who has ended, and when."""
        ended: list[tuple[_Rehearsed, float]] = []
        while self.queue.now_s < until_s:
            now_s = self.queue.now_s
            self._take_in(now_s)
            joins_s = self._waiting[0][0] if self._waiting else inf
            stop_s = min(until_s, joins_s) if joins_s > now_s else until_s
            if self.queue:  # answers stand still
                if (job := self.queue.run(stop_s)) is not None:
                    self.join(job, job.first_s)
                continue
            if self._ends:
                step_s, left = self.step_s, self._ends[0][0] - self._steps
                if now_s + left * step_s <= stop_s:
                    self._steps = self._ends[0][0]
                    self.queue.now_s = now_s + left * step_s
                    job = heapq.heappop(self._ends)[2]
                    self._num_context -= _context(job)
                    self.num_placed -= 1
                    self.placed_context -= _context(job)
                    ended.append((job, self.queue.now_s))
                    continue
                self._steps += (stop_s - now_s) / step_s
            self.queue.now_s = stop_s
            if stop_s == inf:
                break
        return ended

    def _take_in(self, now_s: float) -> None:
        room = _MOST_KV * self._make.cache_tokens
        while self._waiting and self._waiting[0][0] <= now_s:
            job = self._waiting[0][2]
            is_full = self._num_context + _context(job) > room
            if self._ends and (is_full or len(self._ends) >= self._make.max_sequences):
                return
            heapq.heappop(self._waiting)
            self._num_put += 1
            end = self._steps + max(1.0, job.come.num_output - 1.0)
            heapq.heappush(self._ends, (end, self._num_put, job))
            self._num_context += _context(job)


def _context(job: _Rehearsed) -> float:
    return job.come.num_prompt + 0.5 * job.come.num_output


def rehearse(
    requests: Sequence[Come], setting: Setting, num_prefill: int, num_decode: int, most_bad: float
) -> int | None:
    """Counts the requests that such a cluster would have answered within their targets; None where
    more than `most_bad` would not have been."""
    return _Rehearsal(setting, num_prefill, num_decode).run(requests, most_bad)


class _Rehearsal:
    def __init__(self, setting: Setting, num_prefill: int, num_decode: int) -> None:
        self._prefills = [_Queue() for _ in range(num_prefill)]
        self._decodes = [_Decode(setting.decode) for _ in range(num_decode)]
        self._prefill, self._decode = setting.prefill, setting.decode
        self._setup_s = setting.link.setup_s
        # All layers but the last travel while the prompt is computed.
        num_bytes = setting.model.token_bytes / setting.model.num_layers
        self._token_s = num_bytes / setting.link.bytes_per_s
        self._num_good = self._num_bad = 0

    def run(self, requests: Sequence[Come], most_bad: float) -> int | None:
        for come in requests:
            self._advance(come.arrived_at)
            self._place(come)
            if self._num_bad > most_bad:
                return None
        self._advance(inf)
        return self._num_good if self._num_bad <= most_bad else None

    def _advance(self, until_s: float) -> None:
        for queue in self._prefills:
            while (job := queue.run(until_s)) is not None:
                self._begun(job)
                job.decode.join(job, job.first_s + job.hand_over_s)
        for decode in self._decodes:
            for job, ended_s in decode.run(until_s):
                self._judge(job, ended_s)

    def _judge(self, job: _Rehearsed, ended_s: float) -> None:
        come = job.come
        is_late = job.first_s - come.arrived_at > come.ttft_s
        itl_s = (ended_s - job.first_s) / max(1.0, come.num_output - 1.0)
        if not is_late and itl_s <= come.itl_s:
            self._num_good += 1
        elif not (is_late and job.hand_over_s):  # else it has counted before
            self._num_bad += 1

    def _begun(self, job: _Rehearsed) -> None:
        """Whoever is late counts at once: a size that does not do is given up the sooner."""
        self._num_bad += job.first_s - job.come.arrived_at > job.come.ttft_s

    def _place(self, come: Come) -> None:
        decode = min(self._decodes, key=lambda each: (each.placed_context, each.num_placed))
        job = _job(come, self._decode, decode, 0.0)
        queue = decode.queue
        if self._prefills:
            over_s = self._setup_s + self._token_s * come.num_prompt
            there = _job(come, self._prefill, decode, over_s)
            quickest = min(self._prefills, key=lambda each: each.wait_s(there.due_s))
            if _first_price(there, quickest) + over_s <= self._price_here(job):
                queue, job = quickest, there
        queue.put(job)
        decode.expect(job)

    def _price_here(self, job: _Rehearsed) -> float:
        """Prices with what answers lose that stand still meanwhile, as the default rule has it."""
        come, decode = job.come, job.decode
        num, own_s = decode.num_placed + 1, job.left_s
        num_context = round(decode.placed_context) + come.num_prompt
        step_s = self._decode.decode_cost.seconds(num_context, num)
        spare_s = max(1e-9, come.num_output * (come.itl_s - step_s))
        wait_s = decode.queue.wait_s(job.due_s)
        turn = min(1.0, wait_s / spare_s)
        done = min(1.0, (wait_s + own_s) / spare_s)
        lost_s = own_s * min(1.0, (wait_s + 0.5 * own_s) / spare_s)
        return _first_price(job, decode.queue) + num * (
            lost_s + _LATE_ANSWER * come.ttft_s * (done - turn)
        )


def _job(come: Come, make: WorkerMake, decode: _Decode, hand_over_s: float) -> _Rehearsed:
    own_s = make.prefill_cost.seconds(come.num_new, come.num_prompt)
    due_s = come.arrived_at + come.ttft_s + own_s
    return _Rehearsed(come, due_s, own_s, decode, hand_over_s)


def _first_price(job: _Rehearsed, queue: _Queue) -> float:
    """Prices its first token: the time until then, and how late it is, as far as that matters."""
    first_s = queue.wait_s(job.due_s) + job.left_s
    return first_s + min(max(0.0, first_s - job.come.ttft_s), job.come.ttft_s)
