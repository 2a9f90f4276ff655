"""Who gets blocks on a decode worker, and when. No process, no engine, no clock."""

from cluster.cost import StepCost
from cluster.types import ComputeRequest, GenerationParams, SamplingParams
from decode_worker.scheduler import DecodeScheduler
from engine.batcher import Batcher
from engine.block_pool import BlockPool
from engine.budget import Budget
from engine.sequence import Sequence


class Unheard:
    """An owner that nobody asks."""

    def scheduled(self) -> None: ...


def scheduler_of(num_blocks: int) -> DecodeScheduler:
    cost = StepCost()
    budget = Budget(max_sequences=8, max_tokens=512)
    batcher = Batcher(BlockPool(num_blocks, 4, 4), budget, prefill_cost=lambda: cost.prefill)
    return DecodeScheduler(batcher, cost, lambda: None)


def sequence_of(name: str, num_tokens: int) -> Sequence:
    params = GenerationParams(sampling=SamplingParams(seed=0), max_tokens=4)
    prompt = [ord(name)] * num_tokens
    request = ComputeRequest(request_id=name, prompt_ids=prompt, params=params, hash_key=b"k")
    return Sequence(request, owner=Unheard())


def test_claims_are_granted_oldest_first_and_wholly_or_not() -> None:
    scheduler = scheduler_of(num_blocks=6)
    granted: list[str] = []
    sequences = {name: sequence_of(name, num) for name, num in (("a", 16), ("b", 12), ("c", 4))}
    for name, sequence in sequences.items():
        scheduler.claim(sequence, lambda name=name: granted.append(name))
    assert granted == ["a"]  # 'b' does not fit beside it, and 'c' does not overtake
    assert sequences["b"].block_table == []
    scheduler.release(scheduler.forgo(sequences["a"]))
    assert granted == ["a", "b", "c"]
    scheduler.check()


def test_memory_that_is_promised_is_told_before_it_is_taken() -> None:
    scheduler = scheduler_of(num_blocks=6)
    first, second = sequence_of("a", 16), sequence_of("b", 12)
    for sequence in (first, second):
        scheduler.expect(sequence)
    assert (scheduler.load().num_claimed_tokens, scheduler.load().num_waiting) == (28, 2)
    scheduler.claim(first, lambda: None)  # granted at once
    scheduler.claim(second, lambda: None)  # waits for blocks
    assert (scheduler.load().num_claimed_tokens, scheduler.load().num_waiting) == (12, 2)
    assert scheduler.load().num_free_blocks == 2
    assert scheduler.load().num_context_tokens == 16  # soon
    scheduler.release(scheduler.forgo(first))
    assert (scheduler.load().num_claimed_tokens, scheduler.load().num_waiting) == (0, 1)
    scheduler.release(scheduler.forgo(second))
    assert (scheduler.load().num_claimed_tokens, scheduler.load().num_waiting) == (0, 0)


def test_a_hand_over_that_never_begins_claims_nothing() -> None:
    scheduler = scheduler_of(num_blocks=6)
    sequence = sequence_of("a", 16)
    scheduler.expect(sequence)
    assert scheduler.forgo(sequence) == []
    assert scheduler.load().num_claimed_tokens == 0


def test_a_sequence_that_was_put_back_comes_before_new_claims() -> None:
    scheduler = scheduler_of(num_blocks=6)
    put_back = sequence_of("a", 8)
    put_back.num_preemptions = 1
    scheduler.submit(put_back)
    granted: list[str] = []
    scheduler.claim(sequence_of("b", 12), lambda: granted.append("b"))
    assert granted == []
    assert scheduler.next_batch() is not None  # it runs again
    scheduler.release([])
    assert granted == ["b"]


def test_a_claim_that_is_withdrawn_gets_nothing() -> None:
    scheduler = scheduler_of(num_blocks=6)
    first, second = sequence_of("a", 20), sequence_of("b", 8)
    granted: list[str] = []
    scheduler.claim(first, lambda: granted.append("a"))
    scheduler.claim(second, lambda: granted.append("b"))
    assert scheduler.forgo(second) == []
    scheduler.release(scheduler.forgo(first))
    assert granted == ["a"]
    assert scheduler.batcher.pool.num_held == 0
