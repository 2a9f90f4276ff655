"""Training rows mean what they say, and a restarted training is the uninterrupted one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shipped_model.corpus import load_corpus
from shipped_model.samples import PREFIX, SampleSource
from shipped_model.tokenizer import chat_prefix, load_tokenizer
from shipped_model.train import (
    TrainConfig,
    answer_logits,
    load_checkpoint,
    new_run,
    save_checkpoint,
    train,
    train_step,
)

CONFIG = TrainConfig(num_steps=4, minutes=60, hidden=64, checkpoint_every=100, log_every=100)


@pytest.fixture(scope="module")
def source() -> SampleSource:
    torch.set_num_threads(1)
    return SampleSource(load_tokenizer(), load_corpus(), CONFIG.seed)


def test_rows_depend_on_seed_and_step_only(source: SampleSource) -> None:
    again = SampleSource(load_tokenizer(), load_corpus(), CONFIG.seed)
    one, two = (s.batch(3, 2, 128, is_long=False) for s in (source, again))
    assert np.array_equal(one.token_ids, two.token_ids)
    assert not np.array_equal(one.token_ids, source.batch(4, 2, 128, is_long=False).token_ids)


def test_evaluation_asks_every_question_once(source: SampleSource) -> None:
    num_conversations = sum(
        len(np.unique(segments[segments > PREFIX]))
        for rows in source.evaluation(8, 256)
        for segments in rows.segments
    )
    assert num_conversations == 3 * len(load_corpus())


def test_a_packed_conversation_gets_the_logits_it_gets_alone(source: SampleSource) -> None:
    rows = next(source.evaluation(1, 256))
    model = new_run(CONFIG).model
    with torch.inference_mode():
        packed, _ = answer_logits(model, rows)
        pair = load_corpus()[0]
        turn = source.exchange(pair.questions[2], pair.answer)
        ids = load_tokenizer().encode(chat_prefix()).ids + turn.question + turn.answer
        alone = model(input_ids=torch.tensor([ids])).logits[0]
    start = 2 * len(turn.answer)  # two phrasings of the same answer come before
    expected = alone[-len(turn.answer) - 1 : -1]
    torch.testing.assert_close(packed[start : start + len(turn.answer)], expected)


@pytest.mark.slow
def test_a_restarted_training_equals_an_uninterrupted_one(
    source: SampleSource, tmp_path: Path
) -> None:
    whole, first, second = new_run(CONFIG), new_run(CONFIG), new_run(CONFIG)
    train(whole, source, CONFIG, tmp_path / "whole.pt")
    for _ in range(2):
        train_step(first, source, CONFIG)
    save_checkpoint(first, tmp_path / "half.pt")
    load_checkpoint(second, tmp_path / "half.pt")
    train(second, source, CONFIG, tmp_path / "half.pt")
    assert second.step == CONFIG.num_steps
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], tensor)
