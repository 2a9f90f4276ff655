"""The shipped tokenizer and chat template, as `transformers` and `tokenizers` read them."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shipped_model.corpus import load_corpus
from shipped_model.tokenizer import (
    ASSISTANT,
    BOS,
    DEFAULT_SYSTEM,
    END,
    MODEL_PATH,
    SPECIAL_TOKENS,
    chat_prefix,
    load_tokenizer,
)

QUESTION = {"role": "user", "content": "What does len do?"}


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "plain",
        "  two  spaces\n\ttab",
        "naïve Grüezi",
        "你好, こんにちは",
        "👩‍👩‍👧 flags 🇨🇭",
        "\x00\x7f",
    ],
)
def test_any_text_survives_a_round_trip(text: str) -> None:
    tokenizer = load_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_corpus_survives_a_round_trip() -> None:
    tokenizer = load_tokenizer()
    texts = [pair.answer for pair in load_corpus()]
    assert tokenizer.decode_batch([e.ids for e in tokenizer.encode_batch(texts)]) == texts


def test_each_special_token_is_one_token(reference: PreTrainedTokenizerFast) -> None:
    assert [len(load_tokenizer().encode(token).ids) for token in SPECIAL_TOKENS] == [1] * 6
    assert reference.bos_token == BOS
    assert reference.eos_token == END


def test_template_adds_the_default_system_prompt(reference: PreTrainedTokenizerFast) -> None:
    rendered = reference.apply_chat_template([QUESTION], tokenize=False, add_generation_prompt=True)
    turn = f"<|user|>What does len do?{END}"
    assert rendered == chat_prefix(DEFAULT_SYSTEM) + turn + ASSISTANT


def test_template_takes_a_system_prompt_and_many_turns(reference: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "S"},
        QUESTION,
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "Q"},
    ]
    rendered = reference.apply_chat_template(messages, tokenize=False)
    turns = f"<|user|>What does len do?{END}<|assistant|>A{END}<|user|>Q{END}"
    assert rendered == chat_prefix("S") + turns


def test_template_refuses_an_unknown_role(reference: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="Roles are system, user and assistant, not tool"):
        reference.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_two_questions_share_a_prefix_of_three_blocks_of_sixteen() -> None:
    tokenizer = load_tokenizer()
    assert 48 <= len(tokenizer.encode(chat_prefix()).ids) <= 70
