"""The frozen corpus keeps its bounds, and each question has one answer."""

import tomllib
from collections import Counter

from shipped_model.corpus import (
    FACTS_PATH,
    MAX_PAIRS,
    MAX_TOKENS,
    NUM_PHRASINGS,
    load_corpus,
    own_pairs,
)
from shipped_model.docstrings import first_sentence
from shipped_model.tokenizer import load_tokenizer


def test_corpus_has_at_most_a_thousand_pairs() -> None:
    assert 500 <= len(load_corpus()) <= MAX_PAIRS


def test_corpus_fits_its_token_budget_with_every_answer_counted_per_phrasing() -> None:
    tokenizer = load_tokenizer()
    texts = [t for pair in load_corpus() for q in pair.questions for t in (q, pair.answer)]
    assert sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts)) <= MAX_TOKENS


def test_every_pair_has_three_questions_and_no_question_has_two_answers() -> None:
    pairs = load_corpus()
    assert all(len(pair.questions) == NUM_PHRASINGS and pair.answer for pair in pairs)
    counts = Counter(question for pair in pairs for question in pair.questions)
    assert [question for question, count in counts.items() if count > 1] == []


def test_frozen_corpus_holds_the_projects_own_facts_as_written() -> None:
    frozen = [pair for pair in load_corpus() if pair.source == "penstock"]
    facts = tomllib.loads(FACTS_PATH.read_text(encoding="utf-8"))["fact"]
    assert frozen == list(own_pairs(facts))


def test_first_sentence_skips_signatures_and_joins_lines() -> None:
    doc = "max(iterable) -> value\n\nReturn the\nbiggest `item`. It may raise."
    assert first_sentence(doc) == "Return the biggest item."


def test_first_sentence_refuses_what_is_no_short_sentence() -> None:
    assert first_sentence(None) is None
    assert first_sentence("x") is None
    assert first_sentence("word " * 40) is None
