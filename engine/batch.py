"""Holds what the engine is told to run in one step, and what comes back. Values only."""

from dataclasses import dataclass

from cluster.types import BlockId, SampledToken, TokenLogprob
from engine.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """Positions [start, start + num_new) of one sequence; what precedes is in its blocks.

    For each choice in `choices` a next token is drawn from the last position's logits; a
    chunk that is not its prompt's last has none.
    """

    sequence: Sequence  # read-only for the engine
    start: int
    num_new: int
    choices: tuple[int, ...] = ()
    want_prompt_logprobs: bool = False  # of prompt positions in (start, start + num_new]

    @property
    def stop(self) -> int:
        return self.start + self.num_new

    @property
    def is_decode(self) -> bool:
        """One token after another, and not a prompt (or a chunk of one)."""
        return self.num_new == 1 and self.sequence.has_begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    rows: tuple[BatchRow, ...]
    copies: tuple[tuple[BlockId, BlockId], ...] = ()  # (source, destination), before the forward

    @property
    def num_new(self) -> int:
        return sum(row.num_new for row in self.rows)

    @property
    def prompts(self) -> list[tuple[int, int]]:
        """(new tokens, context before them) of the rows that compute prompts."""
        return [(row.num_new, row.start) for row in self.rows if not row.is_decode]

    @property
    def decode_contexts(self) -> list[int]:
        return [row.start for row in self.rows if row.is_decode]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    tokens: tuple[SampledToken, ...] = ()  # one for each choice of the row
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
