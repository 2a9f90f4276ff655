"""Logprobs of sampled and prompt tokens are the reference's, however the prompt is chunked."""

import random
from dataclasses import replace

import pytest
import torch

from cluster.types import TokenLogprob
from tests.checkpoints import VOCAB_SIZE, checkpoint, reference_logits
from tests.engine.driver import GREEDY, Driver, make_engine, make_sequence

torch.set_num_threads(1)


def expected(family: str, token_ids: list[int]) -> torch.Tensor:
    return reference_logits(checkpoint(family), token_ids).log_softmax(-1)


def assert_logprob(found: TokenLogprob, token_id: int, row: torch.Tensor, num_top: int) -> None:
    assert found.token_id == token_id
    assert found.logprob == pytest.approx(float(row[token_id]), abs=1e-4)
    assert [value for _, value in found.top] == pytest.approx(
        row.topk(num_top).values.tolist(), abs=1e-4
    )
    for token, value in found.top:
        assert value == pytest.approx(float(row[token]), abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "llama-yarn"])
@pytest.mark.parametrize("budget", [7, 32, 512])
def test_prompt_logprobs_cover_every_prompt_token_but_the_first(family: str, budget: int) -> None:
    rng = random.Random(budget)
    prompts = [[rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in (1, 2, 30, 90)]
    sampling = replace(GREEDY, num_prompt_logprobs=3)
    driver = Driver(
        make_engine(checkpoint(family)), budget=budget, seed=4, wants_prompt_logprobs=True
    )
    driver.run([make_sequence(prompt, sampling, max_tokens=2) for prompt in prompts])
    for index, prompt in enumerate(prompts):
        found = driver.prompt_logprobs[index]
        rows = expected(family, prompt)
        assert len(found) == len(prompt) - 1
        for position, logprob in enumerate(found):
            assert_logprob(logprob, prompt[position + 1], rows[position], 3)


def test_sampled_logprobs_are_the_model_s_before_temperature_and_masks() -> None:
    prompt = list(range(20, 60))
    sampling = replace(
        GREEDY, seed=3, temperature=2.0, top_k=5, num_logprobs=4, bad_token_ids=(7, 8)
    )
    driver = Driver(make_engine(checkpoint("llama")))
    output = driver.run([make_sequence(prompt, sampling, max_tokens=10)])[0]
    rows = expected("llama", prompt + output)[len(prompt) - 1 :]
    for step, token in enumerate(driver.sampled[0]):
        assert token.logprob is not None
        assert_logprob(token.logprob, output[step], rows[step], 4)


def test_a_greedy_token_may_come_with_its_logprob_alone() -> None:
    driver = Driver(make_engine(checkpoint("llama")))
    driver.run([make_sequence([5, 6], replace(GREEDY, num_logprobs=0), max_tokens=1)])
    logprob = driver.sampled[0][0].logprob
    assert logprob is not None
    assert logprob.logprob is not None
    assert logprob.top == ()
