"""Whatever the order, the memory and the chunks: every answer is the one computed alone."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.types import ComputeRequest, GenerationParams, PrefillCost
from engine.sequence import Sequence
from tests.engine.batcher_rig import Rig, alone, request


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_blocks=st.integers(12, 60),
    block_and_grain=st.sampled_from([(4, 4), (2, 4), (8, 4), (4, 2), (1, 4)]),
    max_tokens=st.sampled_from([3, 7, 64]),
)
def test_answers_do_not_depend_on_batching_memory_or_chunks(
    seed: int, num_blocks: int, block_and_grain: tuple[int, int], max_tokens: int
) -> None:
    rng = random.Random(seed)
    block_size, grain = block_and_grain
    shared = [rng.randrange(50) for _ in range(12)]
    requests = [
        request(
            f"r{i}",
            shared[: rng.randrange(1, 13)] + [rng.randrange(50) for _ in range(rng.randrange(12))],
            max_tokens=rng.randrange(1, 10),
            n=rng.choice([1, 1, 3]),
            temperature=rng.choice([0.0, 1.0]),
            due_s=rng.choice([0.0, 1.0, 2.0]),
        )
        for i in range(8)
    ]
    rig = Rig(
        num_blocks=max(num_blocks * 4 // block_size, -(-40 // block_size)),
        block_size=block_size,
        grain=grain,
        max_tokens=max_tokens,
    )
    for each in requests:
        rig.add(each)
        for _ in range(rng.randrange(3)):
            rig.step()
    assert rig.run() == alone(requests)


def test_a_small_pool_puts_sequences_back_and_loses_nothing() -> None:
    requests = [request(f"r{i}", [i, 1, 2, 3, 4], max_tokens=20) for i in range(6)]
    rig = Rig(num_blocks=14)
    for each in requests:
        rig.add(each)
    assert rig.run() == alone(requests)
    assert rig.batcher.counters.num_preemptions > 0


def test_a_cached_prefix_is_not_computed_again() -> None:
    rig = Rig()
    first = rig.add(request("a", list(range(20))))
    rig.run()
    second = rig.add(request("b", [*range(16), 99, 98]))
    rig.run()
    assert first.num_cached == 0
    assert second.num_cached == 16


def test_siblings_wait_for_the_prefix_in_progress() -> None:
    rig = Rig(max_tokens=8)
    sequences = [rig.add(request(f"r{i}", [*range(32), i])) for i in range(4)]
    rig.run()
    assert [s.num_cached for s in sequences] == [0, 32, 32, 32]
    assert rig.batcher.counters.num_computed_tokens < 33 + 3 * 4 + 4 * 8


def test_siblings_go_on_alone_when_the_first_is_dropped() -> None:
    rig = Rig(max_tokens=8)
    first, second = (rig.add(request(f"r{i}", [*range(32), i])) for i in range(2))
    rig.step()
    rig.batcher.drop(first)
    answers = rig.run()
    assert answers["r1/0"] == alone([request("r1", [*range(32), 1])])["r1/0"]
    assert second.num_cached == 8


def test_dropping_in_flight_frees_the_blocks_after_the_step() -> None:
    rig = Rig()
    sequence = rig.add(request("a", list(range(20))))
    batch = rig.batcher.next_batch()
    assert batch is not None
    rig.batcher.drop(sequence)
    assert rig.pool.num_held > 0
    assert rig.batcher.complete(rig.engine.forward(batch)) == []
    assert rig.pool.num_held == 0
    rig.batcher.check()


def test_higher_priority_goes_first() -> None:
    rig = Rig(max_sequences=1)
    order = []
    for name, priority in (("low", 0), ("high", 5)):
        each = request(name, [1, 2, 3])
        params = GenerationParams(sampling=each.params.sampling, max_tokens=1, priority=priority)
        rig.batcher.add(
            Sequence(
                ComputeRequest(
                    request_id=name, prompt_ids=[1, 2, 3], params=params, hash_key=b"k" * 32
                )
            )
        )
    while rig.step():
        order = list(rig.answers)
    assert order == ["high/0", "low/0"]


def test_a_paused_sequence_is_not_run_and_goes_on_later() -> None:
    rig = Rig()
    sequence = rig.add(request("a", [1, 2, 3]))
    rig.step()
    rig.batcher.paused.add(sequence)
    assert not rig.batcher.has_work
    assert not rig.step()
    rig.batcher.paused.clear()
    assert rig.run()["a/0"] == alone([request("a", [1, 2, 3])])["a/0"]


def test_prompt_work_of_one_step_is_bounded_by_predicted_seconds() -> None:
    rig = Rig(num_blocks=200, max_tokens=512, chunk_s=0.1)
    rig.batcher._prefill_cost = lambda: PrefillCost(c0=0.0, c1=0.002)
    rig.add(request("a", list(range(200))))
    batch = rig.batcher.next_batch()
    assert batch is not None
    assert batch.num_new == 50


@pytest.mark.parametrize("block_size", [2, 4, 8])
def test_events_tell_exactly_the_findable_grains(block_size: int) -> None:
    rig = Rig(num_blocks=64 // block_size, block_size=block_size, grain=4)
    known: set[bytes] = set()
    rng = random.Random(block_size)
    for i in range(30):
        rig.add(request(f"r{i}", [rng.randrange(3) for _ in range(rng.randrange(4, 30))]))
        while rig.step():
            if (change := rig.pool.take_changes()) is not None:
                known |= set(change.stored)
                known -= set(change.evicted)
            assert known == set(rig.pool.grains())
