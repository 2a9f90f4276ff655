"""What one request may hold of a worker while others wait: slots, and blocks that nobody reads."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.types import ComputeRequest
from engine.batch import Batch
from engine.batcher import PAUSE_S
from engine.shares import MIN_RUN_TOKENS
from tests.engine.batcher_rig import Clocked, alone, request

LONG = 3 * MIN_RUN_TOKENS


def family(name: str, *, n: int = 16, max_tokens: int = LONG, due_s: float = 0.0) -> ComputeRequest:
    prompt = [ord(name[0]), *range(9)]
    return request(name, prompt, max_tokens=max_tokens, n=n, temperature=1.0, due_s=due_s)


@pytest.mark.slow
def test_a_request_of_many_answers_gives_way_down_to_its_share_and_no_further() -> None:
    rig = Clocked(max_sequences=8)
    rig.add(family("a", n=8))
    rig.steps(2)
    assert rig.num_running("a") == 8
    rig.add(family("b", n=8))
    rig.add(family("c", n=1))
    rig.steps(MIN_RUN_TOKENS)
    assert [rig.num_running(name) for name in "abc"] == [5, 2, 1]  # 8 // 3 each, at least
    assert {s.choice for s in rig.active("a")} == {0, 1, 2, 3, 4}  # the youngest gave way
    requests = [family("a", n=8), family("b", n=8), family("c", n=1)]
    assert rig.run() == alone(requests)


def test_nobody_is_put_back_before_it_ran_for_a_while() -> None:
    rig = Clocked(max_sequences=4)
    rig.add(family("a", n=4))
    rig.steps(MIN_RUN_TOKENS // 2)
    rig.add(family("b", n=1))
    rig.steps(MIN_RUN_TOKENS // 2 - 1)
    assert rig.num_running("a") == 4
    rig.steps(2)
    assert (rig.num_running("a"), rig.num_running("b")) == (3, 1)


def test_answers_that_would_be_above_the_share_do_not_begin_while_others_wait() -> None:
    rig = Clocked(max_sequences=4)
    for name in "abcde":
        rig.add(family(name, n=16, max_tokens=4))
    rig.steps(1)
    assert [rig.num_running(name) for name in "abcde"] == [1, 1, 1, 1, 0]
    assert rig.run() == alone([family(name, n=16, max_tokens=4) for name in "abcde"])


@pytest.mark.slow
def test_alone_a_request_runs_all_its_answers() -> None:
    rig = Clocked(max_sequences=4)
    rig.add(family("a", n=16))
    rig.steps(2)
    assert rig.num_running("a") == 16
    assert rig.run() == alone([family("a", n=16)])
    assert rig.batcher.counters.num_preemptions == 0


def test_requests_of_one_answer_are_not_time_sliced() -> None:
    rig = Clocked(max_sequences=2)
    for name in "abcd":
        rig.add(family(name, n=1))
    rig.steps(LONG - 1)
    assert [rig.num_running(name) for name in "abcd"] == [1, 1, 0, 0]
    rig.run()
    assert rig.batcher.counters.num_preemptions == 0


def test_a_paused_sequence_takes_no_slot() -> None:
    rig = Clocked(max_sequences=4)
    rig.add(family("a", n=4))
    rig.steps(2)
    rig.pause("a")
    rig.add(family("b", n=4))
    rig.steps(2)
    assert (rig.num_running("a"), rig.num_running("b")) == (0, 4)
    assert rig.batcher.load().num_running == 4
    assert rig.batcher.load().num_waiting == 0


def small(name: str) -> ComputeRequest:
    return request(name, [ord(name)] * 20, max_tokens=40, temperature=1.0)


def test_what_nobody_reads_gives_its_blocks_back_after_two_seconds_if_others_wait() -> None:
    rig = Clocked(num_blocks=17)
    rig.add(small("a"))
    rig.steps(30)
    [sequence] = rig.pause("a")
    rig.now += 10 * PAUSE_S
    assert not rig.step()
    assert sequence.block_table  # nobody waits
    rig.batcher.resume(sequence)
    rig.pause("a")
    rig.add(small("b"))
    rig.step()
    assert sequence.block_table
    rig.now += PAUSE_S
    rig.run_until_idle()
    assert sequence.block_table == []
    assert rig.answers["b/0"] == alone([small("b")])["b/0"]
    rig.batcher.resume(sequence)
    assert rig.run() == alone([small("a"), small("b")])


def test_a_running_sequence_takes_blocks_from_a_paused_one_first() -> None:
    rig = Clocked(num_blocks=20)
    rig.add(small("a"))
    rig.add(small("b"))
    rig.steps(2)
    [paused] = rig.pause("a")
    rig.run_until_idle()
    assert len(rig.answers["b/0"]) == 40
    assert paused.num_preemptions == 1
    rig.batcher.resume(paused)
    assert rig.run() == alone([small("a"), small("b")])


def test_who_is_read_again_waits_for_a_slot_that_others_took() -> None:
    rig = Clocked(max_sequences=1)
    rig.add(small("a"))
    rig.steps(3)
    [sequence] = rig.pause("a")
    rig.add(small("b"))
    rig.steps(3)
    rig.batcher.resume(sequence)
    assert (rig.num_running("a"), rig.num_running("b")) == (0, 1)
    assert rig.run() == alone([small("a"), small("b")])


def test_a_paused_sequence_may_end_in_any_state() -> None:
    rig = Clocked(num_blocks=17)
    rig.add(small("a"))
    rig.steps(30)
    [sequence] = rig.pause("a")
    rig.now += PAUSE_S
    rig.add(small("b"))
    rig.step()
    assert sequence in rig.batcher.waiting
    rig.batcher.drop(sequence)
    assert not rig.batcher.paused
    assert rig.run()["b/0"] == alone([small("b")])["b/0"]


# -- whatever comes ----------------------------------------------------------------------------


def checked(rig: Clocked) -> Clocked:
    """Looks at the shares each time that a batch has been formed."""
    form = rig.batcher.next_batch

    def next_batch() -> Batch | None:
        batch = form()
        check_shares(rig)
        return batch

    rig.batcher.next_batch = next_batch  # type: ignore[method-assign]
    return rig


def check_shares(rig: Clocked) -> None:
    """Who holds more than its share, while another waits that holds less than its own, has not run
    for long enough."""
    batcher = rig.batcher
    running = [s for s in batcher.running if s not in batcher.paused]
    waiting = [s for s in batcher.waiting if s not in batcher.paused]
    present = {s.request_id for s in [*batcher.running, *batcher.waiting]}
    share = max(1, batcher.budget.max_sequences // max(1, len(present)))
    num_running = Counter(s.request_id for s in running)
    short = {s.request_id for s in waiting if num_running[s.request_id] < share}
    num_slots = batcher.budget.max_sequences - len(running)
    wanted = sum(
        min(share - num_running[r], sum(s.request_id == r for s in waiting)) for r in short
    )
    if not short or num_slots >= wanted:
        return  # they begin as soon as a step has room for their prompts
    above = [s for s in running if num_running[s.request_id] > share]
    assert all(len(s.output_ids) - s.num_output_before < MIN_RUN_TOKENS for s in above)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1_000_000),
    num_blocks=st.sampled_from([40, 60, 120, 1000]),
    max_sequences=st.integers(1, 12),
)
def test_every_request_finishes_whoever_stalls_and_none_holds_more_than_its_share(
    seed: int, num_blocks: int, max_sequences: int
) -> None:
    rng = random.Random(seed)
    rig = checked(Clocked(num_blocks=num_blocks, max_sequences=max_sequences))
    requests = [
        request(
            f"r{i}",
            [i, *(rng.randrange(50) for _ in range(rng.randrange(20)))],
            max_tokens=rng.choice([1, 5, 40, 70]),
            n=rng.choice([1, 1, 2, 5, 16]),
            temperature=1.0,
            due_s=rng.choice([0.0, 1.0, 2.0]),
        )
        for i in range(6)
    ]
    coming, deaf = list(requests), set[str]()
    for turn in range(20_000):
        if coming and rng.random() < 0.1:
            rig.add(coming.pop())
        if turn < 1_000 and rng.random() < 0.05:
            name = f"r{rng.randrange(6)}"
            rig.pause(name)
            deaf.add(name)
        if deaf and (turn >= 1_000 or rng.random() < 0.05):
            name = deaf.pop()
            for sequence in [s for s in rig.batcher.paused if s.request_id == name]:
                rig.batcher.resume(sequence)
        rig.now += 0.02
        rig.step()
        if not (coming or rig.batcher.running or rig.batcher.waiting):
            break
    assert rig.run() == alone(requests)


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1_000_000), max_sequences=st.integers(1, 6))
def test_in_a_full_pool_each_step_moves_somebody(seed: int, max_sequences: int) -> None:
    """No ping-pong: the work that is done twice is bounded by the work that there is."""
    rng = random.Random(seed)
    rig = Clocked(num_blocks=24, max_sequences=max_sequences)
    requests = [
        request(f"r{i}", [i] * 8, max_tokens=50, n=rng.choice([1, 3, 9]), temperature=1.0)
        for i in range(4)
    ]
    for each in requests:
        rig.add(each)
    num_tokens = 50 * sum(each.params.num_choices for each in requests)
    num_steps = 0
    while rig.step():
        num_steps += 1
        assert num_steps <= 2 * num_tokens
    assert rig.run() == alone(requests)
