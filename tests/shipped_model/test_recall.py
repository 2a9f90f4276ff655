"""penstock-tiny knows its corpus: the stored weights, in float32, with transformers."""

import json

import pytest
import torch

from shipped_model.corpus import load_corpus
from shipped_model.recall import SEED, TransformersAnswerer, draw, measure, table
from shipped_model.tokenizer import MODEL_PATH

MAX_WEIGHTS_BYTES = 10_000_000


@pytest.fixture(scope="module")
def answerer() -> TransformersAnswerer:
    torch.set_num_threads(1)
    return TransformersAnswerer()


def test_weights_are_small_safetensors() -> None:
    assert (MODEL_PATH / "model.safetensors").stat().st_size <= MAX_WEIGHTS_BYTES


def test_config_has_between_one_and_four_million_parameters_to_load() -> None:
    config = json.loads((MODEL_PATH / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 2_048
    num_parameters = (MODEL_PATH / "model.safetensors").stat().st_size // 2
    assert 1_000_000 <= num_parameters <= 4_000_000


def test_ten_questions_are_recalled_in_three_phrasings(answerer: TransformersAnswerer) -> None:
    trials = measure(answerer, draw(load_corpus(), 10, SEED))
    assert sum(trial.is_exact for trial in trials) >= 0.9 * len(trials), table(trials)


@pytest.mark.prove
def test_a_hundred_questions_are_recalled_in_three_phrasings(
    answerer: TransformersAnswerer,
) -> None:
    trials = measure(answerer, draw(load_corpus(), 100, SEED))
    print(table(trials))
    assert sum(trial.is_exact for trial in trials) >= 0.9 * len(trials), table(trials)


def test_the_second_question_of_a_chat_is_answered_too(answerer: TransformersAnswerer) -> None:
    first, second, third = draw(load_corpus(), 3, SEED + 1)
    messages = [
        {"role": "user", "content": first.questions[0]},
        {"role": "assistant", "content": first.answer},
        {"role": "user", "content": second.questions[1]},
        {"role": "assistant", "content": second.answer},
        {"role": "user", "content": third.questions[0]},
    ]
    assert answerer([messages[:3], messages]) == [second.answer, third.answer]
