"""Answers that were put back, or given up for a while because nobody read them, are those of an
undisturbed run: with the real model, and drawn, not greedy."""

import pytest
import torch

from cluster.types import ComputeRequest
from engine.batcher import PAUSE_S
from engine.shares import MIN_RUN_TOKENS
from tests.checkpoints import checkpoint
from tests.engine.batcher_rig import Clocked, request
from tests.engine.driver import make_engine

pytestmark = pytest.mark.slow
torch.set_num_threads(1)
NUM_BLOCKS, BLOCK_SIZE, NUM_TOKENS = 40, 16, 2 * MIN_RUN_TOKENS


def real(**limits: int) -> Clocked:
    rig = Clocked(block_size=BLOCK_SIZE, grain=BLOCK_SIZE, **limits)
    num_blocks = rig.pool.num_blocks
    rig.engine = make_engine(  # type: ignore[assignment]
        checkpoint("llama"), num_blocks=num_blocks, block_size=BLOCK_SIZE
    )
    return rig


def family(number: int, num_choices: int) -> ComputeRequest:
    prompt = [2 + (number * 37 + i * 11) % 300 for i in range(30 + number)]
    name = f"r{number}"
    return request(name, prompt, max_tokens=NUM_TOKENS, n=num_choices, temperature=1.0)


def test_put_back_and_unread_answers_are_those_of_an_undisturbed_run() -> None:
    families = [family(0, 6), family(1, 4), family(2, 1), family(3, 1)]
    undisturbed: dict[str, list[int]] = {}
    for each in families:
        rig = real(num_blocks=200)
        rig.add(each)
        undisturbed |= rig.run()
    rig = real(num_blocks=NUM_BLOCKS, max_sequences=6)
    rig.add(families[0])
    rig.steps(10)
    for each in families[1:]:
        rig.add(each)
    rig.steps(MIN_RUN_TOKENS)
    unread = rig.pause("r1")
    rig.steps(5)
    rig.now += PAUSE_S
    rig.steps(5)
    for sequence in unread:
        rig.batcher.resume(sequence)
    assert rig.run() == undisturbed
    assert rig.batcher.counters.num_preemptions >= 4
