"""The same engine on a CUDA device gives the reference's answers, in float32."""

import pytest
import torch

from engine.checkpoint import load_spec
from engine.config import AttentionForm, EngineConfig
from engine.engine import Engine
from tests.checkpoints import FAMILIES, checkpoint
from tests.engine.driver import Driver, make_sequence
from tests.engine.greedy import count_mismatches, draw_prompts

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [32, 512])
@pytest.mark.parametrize("attention", ["triton", "torch"])
def test_greedy_answers_on_cuda_equal_the_reference(
    family: str, budget: int, attention: AttentionForm
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    config = EngineConfig(
        checkpoint=checkpoint(family),
        num_blocks=512,
        block_size=16,
        num_threads=1,
        device="cuda",
        attention=attention,
    )
    engine = Engine(load_spec(checkpoint(family)), config)
    prompts = draw_prompts(budget, 24)
    driver = Driver(engine, budget=budget, seed=3)
    outputs = driver.run([make_sequence(prompt, max_tokens=16) for prompt in prompts])
    num_tokens = sum(map(len, outputs))
    assert count_mismatches(family, prompts, outputs) <= num_tokens / 1_000
