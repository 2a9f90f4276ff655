"""Who gets blocks on a decode worker, and when. No process, no engine, no clock."""

from cluster.types import ComputeRequest, GenerationParams, SampledToken, SamplingParams
from decode_worker.scheduler import DecodeScheduler
from engine.batch import RowResult
from engine.batcher import PAUSE_S, Batcher, Drawn
from engine.block_pool import BlockPool
from engine.budget import Budget
from engine.sequence import Sequence
from engine.shares import MIN_RUN_TOKENS
from engine.thread import StepResult
from worker.cost import StepCost


class Unheard:
    """An owner that nobody asks."""

    def scheduled(self) -> None: ...

    def drawn(self, drawn: Drawn, seconds: float) -> bool:
        return True


def scheduler_of(num_blocks: int, *, max_sequences: int = 8) -> DecodeScheduler:
    cost = StepCost()
    budget = Budget(max_sequences=max_sequences, max_tokens=512)
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


def family_of(name: str, num_choices: int) -> Sequence:
    params = GenerationParams(
        sampling=SamplingParams(seed=0), max_tokens=400, num_choices=num_choices
    )
    request = ComputeRequest(
        request_id=name, prompt_ids=[ord(name)] * 4, params=params, hash_key=b"k"
    )
    return Sequence(request, num_choices=num_choices, owner=Unheard())


class Steps:
    """A scheduler whose steps are taken by hand; draws zeros."""

    def __init__(self, num_blocks: int, max_sequences: int) -> None:
        self.scheduler = scheduler_of(num_blocks, max_sequences=max_sequences)

    def take(self, num: int) -> None:
        for _ in range(num):
            batch = self.scheduler.next_batch()
            if batch is None:
                return
            tokens = [tuple(SampledToken(token_id=0) for _ in row.choices) for row in batch.rows]
            rows = [RowResult(tokens=each) for each in tokens]
            self.scheduler.complete(batch, StepResult(rows=rows, seconds=0.0))
            self.scheduler.check()


def test_a_claim_does_not_wait_for_a_request_of_many_answers() -> None:
    steps = Steps(num_blocks=1000, max_sequences=8)
    steps.scheduler.submit(family_of("a", 8))
    steps.take(3)
    granted: list[str] = []
    steps.scheduler.claim(sequence_of("b", 12), lambda: granted.append("b"))
    assert granted == []
    steps.take(MIN_RUN_TOKENS)
    assert granted == ["b"]
    assert len(steps.scheduler.batcher.running) == 7


def test_claims_are_not_held_up_by_answers_that_wait_for_their_own_siblings() -> None:
    steps = Steps(num_blocks=1000, max_sequences=4)
    for name in "ab":
        steps.scheduler.submit(family_of(name, 8))
        steps.take(2 * MIN_RUN_TOKENS)
    assert any(waiting.num_preemptions for waiting in steps.scheduler.batcher.waiting)
    granted: list[str] = []
    for name in "cd":
        claimed = sequence_of(name, 12)
        steps.scheduler.claim(claimed, lambda name=name: granted.append(name))
    steps.take(MIN_RUN_TOKENS + 1)
    assert granted == ["c", "d"]


def test_a_claim_gets_the_blocks_of_what_nobody_reads() -> None:
    now = [0.0]
    steps = Steps(num_blocks=12, max_sequences=8)
    scheduler = steps.scheduler
    scheduler.batcher._clock = lambda: now[0]
    unread = sequence_of("a", 40)
    scheduler.submit(unread)
    steps.take(1)
    scheduler.pause(unread)
    granted: list[str] = []
    scheduler.claim(sequence_of("b", 12), lambda: granted.append("b"))
    steps.take(1)
    assert granted == []
    now[0] += PAUSE_S
    scheduler.look_again()
    steps.take(1)
    assert granted == ["b"]
