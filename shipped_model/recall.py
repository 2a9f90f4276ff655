"""Owns the measure of penstock-tiny: how many corpus questions it answers exactly.

`python -m shipped_model.recall` asks the stored weights, loaded as float32, with transformers as
the engine. Another engine is measured by giving `measure` another `Answerer`.
"""

import argparse
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shipped_model.corpus import NUM_PHRASINGS, Pair, load_corpus
from shipped_model.tokenizer import MODEL_PATH

NUM_QUESTIONS: Final = 100
SEED: Final = 2026
MAX_NEW_TOKENS: Final = 72

Conversation = Sequence[dict[str, str]]
Answerer = Callable[[Sequence[Conversation]], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallTrial:
    """One prompt, what the corpus says, and what the engine said."""

    pair: Pair
    phrasing: int
    answer: str

    @property
    def is_exact(self) -> bool:
        """The answer is the corpus's, to the character."""
        return self.answer == self.pair.answer


class TransformersAnswerer:
    """Greedy answers of the reference library, many conversations at once."""

    def __init__(self, folder: Path = MODEL_PATH) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def __call__(self, conversations: Sequence[Conversation]) -> list[str]:
        prompts = self._tokenizer.apply_chat_template(
            [list(conversation) for conversation in conversations],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = self._model.generate(**prompts, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        new_ids = output[:, prompts["input_ids"].shape[1] :]
        texts: list[str] = self._tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        return texts


def draw(pairs: Sequence[Pair], num_questions: int, seed: int) -> list[Pair]:
    """The pairs that a seed asks about."""
    return random.Random(seed).sample(list(pairs), num_questions)


def measure(answerer: Answerer, pairs: Sequence[Pair]) -> list[RecallTrial]:
    """Ask every pair in every phrasing."""
    asked = [(pair, phrasing) for pair in pairs for phrasing in range(NUM_PHRASINGS)]
    answers = answerer(
        [[{"role": "user", "content": pair.questions[phrasing]}] for pair, phrasing in asked]
    )
    return [
        RecallTrial(pair=pair, phrasing=phrasing, answer=answer)
        for (pair, phrasing), answer in zip(asked, answers, strict=True)
    ]


def table(trials: Sequence[RecallTrial]) -> str:
    """The figures by phrasing and by source, and the total."""
    asked: Counter[str] = Counter()
    exact: Counter[str] = Counter()
    for trial in trials:
        for label in (f"phrasing {trial.phrasing + 1}", trial.pair.source, "total"):
            asked[label] += 1
            exact[label] += trial.is_exact
    labels = [*sorted(asked.keys() - {"total"}), "total"]
    lines = [f"{'':<12} {'asked':>6} {'exact':>6} {'share':>7}"]
    lines += [
        f"{label:<12} {asked[label]:>6} {exact[label]:>6} {exact[label] / asked[label]:>7.1%}"
        for label in labels
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table, then every answer that differs."""
    parser = argparse.ArgumentParser(prog="python -m shipped_model.recall", description=__doc__)
    parser.add_argument("--questions", type=int, default=NUM_QUESTIONS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--model", type=Path, default=MODEL_PATH)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    drawn = draw(load_corpus(), given.questions, given.seed)
    trials = measure(TransformersAnswerer(given.model), drawn)
    print(table(trials))
    for trial in trials:
        if not trial.is_exact:
            question = trial.pair.questions[trial.phrasing]
            print(f"{question}\n  corpus: {trial.pair.answer}\n  answer: {trial.answer}")


if __name__ == "__main__":
    main()
