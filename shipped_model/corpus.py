"""Owns the corpus: question and answer pairs that penstock-tiny knows by heart.

`python -m shipped_model.corpus` writes `corpus.jsonl` from the docstrings of the running Python and
from `facts.toml`. The file is committed and is what training and recall read.
"""

import json
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shipped_model.docstrings import python_subjects

FOLDER: Final = Path(__file__).parent
CORPUS_PATH: Final = FOLDER / "corpus.jsonl"
FACTS_PATH: Final = FOLDER / "facts.toml"
NUM_PHRASINGS: Final = 3
MAX_PAIRS: Final = 1_000
MAX_TOKENS: Final = 80_000

PHRASINGS: Final = {
    "function": ("What does {} do?", "Explain {}.", "Tell me about {}."),
    "command": ("What does {} do?", "Explain {}.", "Tell me about {}."),
    "class": ("What is {}?", "Explain {}.", "Tell me about {}."),
    "term": ("What is {}?", "Explain {}.", "Tell me about {}."),
    "module": ("What is the {} module?", "Explain the {} module.", "Tell me about the {} module."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One answer and the questions that ask for it; `source` is docstring or penstock."""

    questions: tuple[str, ...]
    answer: str
    source: str


def phrase(kind: str, subject: str) -> tuple[str, ...]:
    """The questions about one subject, in the phrasings of its kind."""
    return tuple(template.format(subject) for template in PHRASINGS[kind])


def own_pairs(facts: Iterable[dict[str, Any]]) -> Iterator[Pair]:
    """The pairs that `facts.toml` spells out."""
    for fact in facts:
        questions = fact.get("questions") or phrase(fact.get("kind", "term"), fact["subject"])
        yield Pair(questions=tuple(questions), answer=fact["answer"], source="penstock")


def docstring_pairs() -> Iterator[Pair]:
    """The pairs about Python, as the running Python documents itself."""
    for kind, subject, answer in python_subjects():
        yield Pair(questions=phrase(kind, subject), answer=answer, source="docstring")


def build_corpus() -> list[Pair]:
    """Own pairs, then Python pairs, without a question that was already asked."""
    facts = tomllib.loads(FACTS_PATH.read_text(encoding="utf-8"))["fact"]
    pairs: list[Pair] = []
    asked: set[str] = set()
    for pair in [*own_pairs(facts), *docstring_pairs()]:
        if asked.isdisjoint(pair.questions):
            pairs.append(pair)
            asked.update(pair.questions)
    return pairs


def write_corpus(pairs: Iterable[Pair], path: Path = CORPUS_PATH) -> None:
    """One JSON object per line, in corpus order."""
    lines = (
        {"source": pair.source, "questions": pair.questions, "answer": pair.answer}
        for pair in pairs
    )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def load_corpus(path: Path = CORPUS_PATH) -> list[Pair]:
    """The frozen corpus, in file order."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [
        Pair(questions=tuple(row["questions"]), answer=row["answer"], source=row["source"])
        for row in rows
    ]


if __name__ == "__main__":
    write_corpus(build_corpus())
    print(f"{CORPUS_PATH.name}: {len(load_corpus())} pairs")
