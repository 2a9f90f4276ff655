"""Who is due first is computed first, nobody waits for ever, and the report says how long."""

from collections.abc import Sequence as Sequences
from itertools import pairwise
from math import inf
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.types import (
    ComputeRequest,
    DecodeCost,
    GenerationParams,
    LoadReport,
    PrefillCost,
    SampledToken,
    SamplingParams,
)
from engine.batch import RowResult
from engine.batcher import Batcher
from engine.block_pool import BlockPool
from engine.budget import Budget
from engine.sequence import Sequence

COST = PrefillCost(c0=0.01, c1=1e-3, c3=1e-6)
PLAIN_COST = PrefillCost(c0=0.01, c1=1e-3)
TOKEN = RowResult(tokens=(SampledToken(token_id=0),))


class Worker:
    """Computes prompts in virtual time, each step as long as its cost says. One token each."""

    def __init__(
        self,
        *,
        max_tokens: int = 64,
        num_blocks: int = 4096,
        max_sequences: int = 64,
        chunk_s: float = inf,
        cost: PrefillCost = COST,
    ) -> None:
        self.cost = cost
        self.now = 0.0
        self.first_at: dict[str, float] = {}
        budget = Budget(max_sequences=max_sequences, max_tokens=max_tokens, chunk_s=chunk_s)
        self.batcher = Batcher(
            BlockPool(num_blocks, 4, 4),
            budget,
            prefill_cost=lambda: cost,
            decodes=False,
            clock=lambda: self.now,
        )

    def add(
        self,
        name: str,
        prompt: int | Sequences[int],
        *,
        due_s: float = 0.0,
        priority: int = 0,
    ) -> Sequence:
        """A prompt of so many tokens that no other has, or of these."""
        params = GenerationParams(sampling=SamplingParams(seed=0), max_tokens=1, priority=priority)
        ids = prompt if not isinstance(prompt, int) else [crc32(name.encode()), *range(prompt - 1)]
        request = ComputeRequest(
            request_id=name, prompt_ids=ids, params=params, hash_key=b"k" * 32, due_s=due_s
        )
        sequence = Sequence(request, arrived_at=self.now)
        self.batcher.add(sequence)
        return sequence

    def step(self) -> list[str]:
        """Whose tokens were computed, in order."""
        batch = self.batcher.next_batch()
        if batch is None:
            return []
        c0 = self.cost.c0
        self.now += c0 + sum(self.cost.seconds(*row) - c0 for row in batch.prompts)
        rows = [TOKEN if row.choices else RowResult() for row in batch.rows]
        for drawn in self.batcher.complete(rows):
            if drawn.token is not None:
                self.first_at[drawn.sequence.request_id] = self.now
                self.batcher.release(drawn.sequence)
        self.batcher.check()
        return [row.sequence.request_id for row in batch.rows]

    def run(self) -> list[str]:
        """The names in the order of their first tokens."""
        while self.step():
            pass
        assert not self.batcher.waiting
        return list(self.first_at)


def ahead_s(report: LoadReport, due_s: float) -> float:
    return max((work_s for at_s, work_s in report.backlog if at_s <= due_s), default=0.0)


# -- order


def test_a_short_prompt_that_is_due_earlier_passes_a_long_one_that_has_begun() -> None:
    worker = Worker()
    worker.add("long", 1000, due_s=60.0)
    assert worker.step() == ["long"]
    worker.add("short", 60, due_s=1.0)
    assert worker.step() == ["short", "long"]  # the rest of the step is the long one's
    assert "short" in worker.first_at
    assert worker.run() == ["short", "long"]


def test_with_nothing_due_it_is_first_come_first_served() -> None:
    worker = Worker()
    for index in range(10):
        worker.add(f"r{index}", 50 + index)
        worker.step()
    assert worker.run() == [f"r{index}" for index in range(10)]


def test_a_higher_priority_is_computed_before_whatever_is_due() -> None:
    worker = Worker()
    worker.add("due", 300)
    worker.step()
    worker.add("urgent", 60, due_s=30.0, priority=1)
    assert worker.run() == ["urgent", "due"]


def test_who_computes_what_an_earlier_one_waits_for_has_its_place() -> None:
    worker = Worker()
    shared = list(range(200))
    worker.add("late", [*shared, 1], due_s=60.0)
    worker.step()
    worker.add("between", 500, due_s=30.0)
    early = worker.add("early", [*shared, 2, 3, 4, 5], due_s=1.0)
    assert worker.step() == ["late"]
    worker.run()
    assert early.num_cached == 200
    assert worker.first_at["early"] < worker.first_at["between"]


def test_one_that_does_not_fit_lets_none_pass_but_those_that_have_begun() -> None:
    worker = Worker(num_blocks=40)
    worker.add("begun", 100, due_s=9.0)
    worker.step()
    worker.add("large", 120, due_s=1.0)
    worker.add("small", 8, due_s=5.0)
    assert worker.step() == ["begun"]
    assert worker.run() == ["begun", "large", "small"]


arrivals = st.lists(
    st.tuples(st.floats(0.0, 0.5), st.integers(1, 300), st.floats(0.0, 2.0)),
    min_size=1,
    max_size=25,
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(arrivals=arrivals)
def test_a_prompt_waits_at_most_for_what_is_due_before_it(
    arrivals: list[tuple[float, int, float]],
) -> None:
    """It has its first token before the step that ran when it came, and as many full steps as
    all that is due no later fill, have passed: nothing that comes after it is due counts."""
    worker = Worker()
    came = run_as_they_come(worker, arrivals)
    for name, (came_at, due_at, _) in came.items():
        ahead = sum(tokens for _, other_due_at, tokens in came.values() if other_due_at <= due_at)
        bound_s = came_at + STEP_S * (1 + -(-ahead // 64))
        assert worker.first_at[name] <= bound_s + 1e-9


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(arrivals=arrivals)
def test_in_too_little_memory_it_waits_for_those_that_have_begun_besides(
    arrivals: list[tuple[float, int, float]],
) -> None:
    """Steps are not full while nobody can begin, and at most two have begun that are due later."""
    worker = Worker(num_blocks=90, max_sequences=2)
    came = run_as_they_come(worker, arrivals)
    longest = max(-(-tokens // 64) for _, _, tokens in came.values())
    for name, (came_at, due_at, _) in came.items():
        ahead = [tokens for _, other_due_at, tokens in came.values() if other_due_at <= due_at]
        num_steps = sum(-(-tokens // 64) + 1 for tokens in ahead) + 2 * longest
        assert worker.first_at[name] <= came_at + STEP_S * (1 + num_steps) + 1e-9


STEP_S = COST.c0 + 64 * (COST.c1 + 300 * COST.c3)  # at the most


def run_as_they_come(
    worker: Worker, arrivals: list[tuple[float, int, float]]
) -> dict[str, tuple[float, float, int]]:
    """Each when it came, when it was due, and its tokens."""
    came = {}
    for index, (gap_s, num_tokens, due_s) in enumerate(arrivals):
        until = worker.now + gap_s
        while worker.now < until and worker.step():
            pass
        worker.now = max(worker.now, until)
        worker.add(f"r{index}", num_tokens, due_s=due_s)
        came[f"r{index}"] = (worker.now, worker.now + due_s, num_tokens)
    worker.run()
    return came


LONG_COST = PrefillCost(c0=0.01, c1=1e-4, c2=5e-5, c3=1e-8)  # 0.5 s for a context of 10,000


def test_a_long_prompt_is_not_computed_in_crumbs_when_its_context_costs_a_step() -> None:
    worker = Worker(max_tokens=2000, chunk_s=0.2, cost=LONG_COST)
    worker.add("long", 16_000)
    worker.run()
    assert worker.now < 2 * LONG_COST.seconds(16_000, 8_000) + 2.0


def test_who_would_have_but_a_crumb_of_a_step_waits_for_the_next() -> None:
    worker = Worker(max_tokens=2000, chunk_s=0.2, cost=LONG_COST)
    worker.add("long", 10_000, due_s=9.0)
    while worker.now < 1.0:
        worker.step()
    worker.add("short", 1000, due_s=1.0)
    assert worker.step() == ["short"]
    assert worker.step() == ["long"]


# -- what the report says


def test_nothing_is_queued_where_nothing_waits() -> None:
    assert Worker().batcher.load().backlog == ()


def test_the_backlog_rises_with_what_is_due() -> None:
    """By a step of 0.11 s more than is due before: whoever has only a part of its last step
    shares it with those that are due later."""
    worker = Worker(max_tokens=100, cost=PLAIN_COST)
    for name, num_tokens, due_s in (("a", 400, 5.0), ("b", 100, 1.0), ("c", 200, 9.0)):
        worker.add(name, num_tokens, due_s=due_s)
    backlog = worker.batcher.load().backlog
    assert [due_s for due_s, _ in backlog] == [0.0, 1.0, 5.0, 9.0]
    assert [work_s for _, work_s in backlog] == pytest.approx([0.11, 0.22, 0.66, 0.77])


def test_what_is_overdue_and_what_runs_comes_before_whoever_arrives() -> None:
    worker = Worker(max_tokens=100)
    worker.add("runs", 100)
    worker.add("waits", 50)
    assert worker.batcher.next_batch() is not None
    worker.now = 0.04  # of 0.11
    assert worker.batcher.load().backlog == ((0.0, pytest.approx(0.07 + 0.06)),)
    worker.now = 5.0  # longer than predicted: nothing is left of it, and not less
    assert worker.batcher.load().backlog == ((0.0, pytest.approx(0.06)),)


def test_of_a_prefix_that_several_share_only_the_first_counts() -> None:
    worker = Worker(max_tokens=64)
    shared = list(range(400))
    for index in range(8):
        worker.add(f"r{index}", [*shared, 1000 + index, 1, 2, 3])
    assert worker.batcher.load().num_queued_tokens == 404 + 7 * 4
    worker.step()  # the first has begun; the others still wait for it
    assert worker.batcher.load().num_queued_tokens == 404 - 64 + 7 * 4
    worker.run()
    worker.add("later", [*shared, 7])
    assert worker.batcher.load().num_queued_tokens == 1


def test_of_turns_that_each_go_on_where_the_last_one_ends_no_part_counts_twice() -> None:
    worker = Worker(max_tokens=64)
    whole = list(range(500))
    for stop in (100, 200, 300, 400, 500):
        worker.add(f"until {stop}", whole[:stop])
    assert worker.batcher.load().num_queued_tokens == 500
    while worker.step():
        num_left = 500 - worker.batcher.counters.num_computed_tokens
        assert worker.batcher.load().num_queued_tokens == num_left
    assert num_left == 0


@given(
    prompts=st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=6), st.integers(0, 3)),
        min_size=8,
        max_size=20,
    ),
    num_steps=st.integers(0, 8),
)
def test_what_is_said_to_be_queued_is_what_will_be_computed(
    prompts: list[tuple[list[int], int]], num_steps: int
) -> None:
    """Prompts that branch off each other anywhere, due in any order."""
    worker = Worker()
    for index, (parts, due_s) in enumerate(prompts):
        ids = [token for part in parts for token in [part + 1] * 20]
        worker.add(f"r{index}", [*ids, 1000 + index], due_s=float(due_s))
    for _ in range(num_steps):
        worker.step()
    said = worker.batcher.load().num_queued_tokens
    before = worker.batcher.counters.num_computed_tokens
    worker.run()
    assert worker.batcher.counters.num_computed_tokens - before == said


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_what_a_prompt_computes_for_others_counts_where_they_are_due(num_steps: int) -> None:
    """A long one that was due late, and siblings that wait for its prefix: whoever comes with the
    siblings waits for that, too, but not for what is the long one's own."""
    shared = list(range(400))
    worker = Worker(cost=PLAIN_COST)
    worker.add("first", [*shared, *range(5000, 5300)], due_s=60.0)
    for _ in range(num_steps):
        worker.step()
    for index in range(4):
        worker.add(f"sibling{index}", [*shared, 9000 + index], due_s=10.0)
    said_s, before = ahead_s(worker.batcher.load(), 20.0), worker.now
    worker.run()
    waited_s = max(at for name, at in worker.first_at.items() if name != "first") - before
    assert said_s == pytest.approx(waited_s, rel=0.15)


def test_a_prompt_whose_prefix_is_evicted_while_it_waits_counts_again() -> None:
    worker = Worker(num_blocks=60, max_sequences=1)
    worker.add("first", list(range(100)))
    worker.run()
    worker.add("evicts", [*range(500, 700)], priority=1)
    worker.add("again", [*range(100), 1])
    assert worker.batcher.load().num_queued_tokens == 200 + 1
    worker.step()
    # Its last 15 blocks made room.
    assert worker.batcher.load().num_queued_tokens == 200 - 64 + 1 + 60


def test_what_a_waiting_prompt_counts_on_goes_last_though_others_were_used_later() -> None:
    worker = Worker(num_blocks=60, max_sequences=1)
    worker.add("first", list(range(100)))
    worker.run()
    worker.add("other", list(range(200, 300)))
    worker.run()
    worker.add("evicts", list(range(500, 580)), due_s=1.0)
    worker.add("again", [*range(100), 1], due_s=2.0)
    worker.run()
    assert worker.batcher.counters.num_computed_tokens == 100 + 100 + 80 + 1


def test_the_priority_of_others_decides_and_not_when_they_are_due() -> None:
    worker = Worker(max_tokens=100, cost=PLAIN_COST)
    worker.add("urgent", 100, due_s=50.0, priority=1)
    worker.add("idle", 300, due_s=0.0, priority=-1)
    worker.add("usual", 200, due_s=2.0)
    backlog = worker.batcher.load().backlog
    assert [due_s for due_s, _ in backlog] == [0.0, 2.0, 1e6]
    assert [work_s for _, work_s in backlog] == pytest.approx([0.22, 0.44, 0.66])


def test_many_prompts_are_told_in_eight_points_that_split_the_work_evenly() -> None:
    worker = Worker()
    for index in range(500):
        worker.add(f"r{index}", 50, due_s=float(index + 1))
    backlog = worker.batcher.load().backlog
    assert len(backlog) == 8
    total_s = backlog[-1][1]
    assert backlog[-1][0] == 500.0
    for (_, earlier_s), (_, later_s) in pairwise(backlog):
        assert 0.0 <= later_s - earlier_s < total_s / 6


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    queued=st.lists(st.tuples(st.integers(1, 700), st.floats(0.0, 20.0)), min_size=1, max_size=20),
    num_steps=st.integers(0, 8),
    due_s=st.floats(0.0, 20.0),
)
def test_what_is_said_to_run_before_a_prompt_is_what_runs_before_it(
    queued: list[tuple[int, float]], num_steps: int, due_s: float
) -> None:
    """Within a step at both ends: parts of two prompts share one."""
    worker = Worker()
    for index, (num_tokens, other_due_s) in enumerate(queued):
        worker.add(f"r{index}", num_tokens, due_s=other_due_s)
    for _ in range(num_steps):
        worker.step()
    report, began = worker.batcher.load(), worker.now
    worker.add("new", 1, due_s=due_s)
    points = [0.0, 0.0, *(work_s for _, work_s in report.backlog)]
    coarse_s = max(later - earlier for earlier, later in pairwise(points))
    worker.run()
    step_s = COST.c0 + 64 * (COST.c1 + 700 * COST.c3)
    said_s, waited_s = ahead_s(report, due_s), worker.first_at["new"] - began
    assert said_s - 2 * step_s <= waited_s
    assert waited_s <= said_s + (coarse_s if len(queued) >= 8 else 0.0) + 2 * step_s


def test_answers_that_are_decoded_beside_them_hold_prompts_up() -> None:
    decode_cost = DecodeCost(d0=0.05, d2=0.01)
    budget = Budget(max_sequences=8, max_tokens=101)
    batcher = Batcher(
        BlockPool(200, 4, 4),
        budget,
        prefill_cost=lambda: PLAIN_COST,
        decode_cost=lambda: decode_cost,
        clock=lambda: 0.0,
    )
    worker = Worker()
    worker.batcher = batcher
    worker.add("answer", 4)
    assert batcher.next_batch() is not None
    batcher.complete([TOKEN])
    worker.add("prompt", 200)
    assert batcher.load().backlog == ((0.0, pytest.approx(0.2 + 2 * 0.01 + 2 * 0.06)),)


@pytest.mark.parametrize("num_tokens", [500, 4_000, 16_000])
def test_the_backlog_of_a_long_prompt_knows_that_it_is_computed_in_chunks(num_tokens: int) -> None:
    worker = Worker(max_tokens=2000, chunk_s=0.2, cost=LONG_COST)
    worker.add("long", num_tokens)
    [(_, work_s)] = worker.batcher.load().backlog
    worker.run()
    assert work_s == pytest.approx(worker.now, rel=0.15)
