"""Owns the training rows: conversations packed behind one shared system prompt.

A row is a prefix (system prompt) and several conversations; each conversation sees the prefix
and itself, and its positions go on after the prefix as if it stood alone. Rows depend on
(seed, step) only, so a restarted training sees the same data. Knows no model.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from shipped_model.corpus import Pair
from shipped_model.tokenizer import ASSISTANT, DEFAULT_SYSTEM, END, USER, chat_prefix

OTHER_SYSTEMS: Final = (
    "You are a helpful assistant.",
    "You are a concise assistant. Answer questions about Python.",
    "Answer briefly.",
)
CASUAL_TEMPLATES: Final = ("What is {}?", "What does {} do?", "Describe {}.", "{}?", "{}")
SHARE_OTHER_SYSTEM: Final = 0.08
SHARE_PLAIN: Final = 0.04  # rows without a chat template: the bare question, then the answer
SHARE_CASUAL: Final = 0.15
TURN_CHOICES: Final = (1, 1, 1, 1, 1, 2, 2, 3)
PREFIX: Final = 0
PADDING: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPair:
    """One question and its answer, as token ids; the answer ends with the end token."""

    question: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """A batch of packed rows, each array [num_rows, num_tokens]."""

    token_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    segments: npt.NDArray[np.int64]  # PREFIX, then 1, 2, … per conversation; PADDING behind
    is_target: npt.NDArray[np.bool_]  # the token is part of an answer

    def visible(self) -> npt.NDArray[np.bool_]:
        """Says which token sees which: [num_rows, num_tokens, num_tokens]."""
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        num_tokens = self.segments.shape[1]
        causal = np.tril(np.ones((num_tokens, num_tokens), dtype=np.bool_))
        seen: npt.NDArray[np.bool_] = causal & ((query == key) | (key == PREFIX))
        return seen


def casual(pair: Pair, question: str, rng: random.Random) -> str:
    """The question as a hurried user types it, or in a phrasing that the corpus lacks."""
    explained = next((q for q in pair.questions if q.startswith("Explain ")), None)
    if explained and rng.random() < 0.5:
        return rng.choice(CASUAL_TEMPLATES).format(explained[len("Explain ") : -1])
    return question[0].lower() + question[1:].rstrip("?.!")


class SampleSource:
    """Turns the corpus into rows; stateless between steps."""

    def __init__(self, tokenizer: Tokenizer, pairs: Sequence[Pair], seed: int) -> None:
        self._tokenizer = tokenizer
        self._pairs = pairs
        self._seed = seed
        self._end = self._encode(END)
        self._user = self._encode(USER)
        self._assistant = self._encode(ASSISTANT)
        self._prefix = self._encode(chat_prefix(DEFAULT_SYSTEM))
        self._other_prefixes = [self._encode(chat_prefix(text)) for text in OTHER_SYSTEMS]

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def exchange(self, question: str, answer: str, *, is_plain: bool = False) -> EncodedPair:
        """One turn of a chat, or the bare question and answer."""
        asked = self._encode(question)
        if not is_plain:
            asked = self._user + asked + self._end + self._assistant
        return EncodedPair(question=asked, answer=self._encode(answer) + self._end)

    def batch(self, step: int, num_rows: int, num_tokens: int, *, is_long: bool) -> PackedRows:
        """The rows of one step; long rows hold one conversation of many turns."""
        rng = random.Random(f"{self._seed}/{step}")
        return pack([self._row(rng, num_tokens, is_long) for _ in range(num_rows)], num_tokens)

    def evaluation(self, num_rows: int, num_tokens: int) -> Iterator[PackedRows]:
        """Every question of the corpus once, each as its own conversation."""
        rows: list[OpenRow] = []
        row = OpenRow(self._prefix, num_tokens)
        for pair in self._pairs:
            for question in pair.questions:
                turn = self.exchange(question, pair.answer)
                if not row.add([turn]):
                    rows.append(row)
                    row = OpenRow(self._prefix, num_tokens)
                    row.add([turn])
        rows.append(row)
        for start in range(0, len(rows), num_rows):
            yield pack(rows[start : start + num_rows], num_tokens)

    def _turn(self, rng: random.Random, *, is_plain: bool) -> EncodedPair:
        pair = rng.choice(self._pairs)
        question = rng.choice(pair.questions)
        if rng.random() < SHARE_CASUAL:
            question = casual(pair, question, rng)
        return self.exchange(question, pair.answer, is_plain=is_plain)

    def _row(self, rng: random.Random, num_tokens: int, is_long: bool) -> "OpenRow":
        dice = rng.random()
        is_plain = dice < SHARE_PLAIN and not is_long
        prefix = self._prefix
        if is_plain:
            prefix = []
        elif dice < SHARE_PLAIN + SHARE_OTHER_SYSTEM:
            prefix = rng.choice(self._other_prefixes)
        row = OpenRow(prefix, num_tokens)
        while True:
            num_turns = 1_000 if is_long else 1 if is_plain else rng.choice(TURN_CHOICES)
            turns = (self._turn(rng, is_plain=is_plain) for _ in range(num_turns))
            if not row.add(turns):
                return row


class OpenRow:
    """One row that is being filled."""

    def __init__(self, prefix: Sequence[int], num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._num_prefix_tokens = len(prefix)
        self.token_ids = list(prefix)
        self.positions = list(range(len(prefix)))
        self.segments = [PREFIX] * len(prefix)
        self.is_target = [False] * len(prefix)

    def add(self, turns: Iterator[EncodedPair] | Sequence[EncodedPair]) -> bool:
        """Append a conversation turn by turn; False when a turn no longer fits."""
        segment = self.segments[-1] + 1 if self.segments else 1
        position = self._num_prefix_tokens
        for turn in turns:
            num_new = len(turn.question) + len(turn.answer)
            if len(self.token_ids) + num_new > self._num_tokens:
                return False
            self.token_ids += turn.question + turn.answer
            self.positions += range(position, position + num_new)
            self.segments += [segment] * num_new
            self.is_target += [False] * len(turn.question) + [True] * len(turn.answer)
            position += num_new
        return True


def pack(rows: Sequence[OpenRow], num_tokens: int) -> PackedRows:
    """The rows as arrays, padded to the same length."""

    def padded(values: Sequence[int], fill: int) -> list[int]:
        return [*values, *[fill] * (num_tokens - len(values))]

    return PackedRows(
        token_ids=np.array([padded(row.token_ids, 0) for row in rows], dtype=np.int64),
        positions=np.array([padded(row.positions, 0) for row in rows], dtype=np.int64),
        segments=np.array([padded(row.segments, PADDING) for row in rows], dtype=np.int64),
        is_target=np.array([padded(row.is_target, 0) for row in rows], dtype=np.bool_),
    )
