"""What an answer costs on every decode worker, and a hand-over to it, in seconds: terms by
name, each a column. Pure. What the prompt costs is the rule's: `router/policies/priced.py`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.load import Column, Columns
from router.pair_costs import Matrix, PairCosts

Positions = NDArray[np.intp]


class Answer(NamedTuple):
    """What will be decoded, as far as it is known beforehand."""

    num_prompt_tokens: int
    num_choices: int
    num_steps: float  # predicted tokens a choice
    itl_s: float  # target
    weight: float  # of its class


class DecodeTerms(NamedTuple):
    """Float64 arrays [decode workers], seconds."""

    price_s: Column
    slot_s: Column  # until there is room, for as much as fits not
    decode_s: Column  # this answer, at the batch it would join
    late_s: Column  # of these, beyond the target of its class
    slowdown_s: Column  # of the answers it would join
    work_s: Column  # GPU seconds it adds, times lambda
    step_s: Column  # one step, at the batch it would join


def decode_terms(
    answer: Answer, columns: Columns, cached: Column, num_prefill: int, backlog: float
) -> DecodeTerms:
    """`cached` [decode workers]: prompt tokens whose KV is there; `backlog` is lambda."""
    decodes = slice(num_prefill, None)
    num_waiting, num_running = columns.num_waiting[decodes], columns.num_running[decodes]
    batch = num_waiting + num_running
    d1, d2 = columns.d1[decodes], columns.d2[decodes]
    added_step_s = d1 * (answer.num_prompt_tokens * answer.num_choices) + d2 * answer.num_choices
    before_s = columns.d0[decodes] + d1 * columns.num_context_tokens[decodes] + d2 * batch
    step_s = before_s + added_step_s
    decode_s = answer.num_steps * step_s
    added_s = answer.num_steps * added_step_s
    num_missing = answer.num_prompt_tokens - cached
    is_full = (num_missing > columns.num_free_tokens[decodes]) | (
        batch >= columns.max_sequences[decodes]
    )
    turns = (num_waiting + 1.0) / np.maximum(num_running, 1.0)
    slot_s = is_full * decode_s * turns
    late_s = np.maximum(decode_s - answer.num_steps * answer.itl_s, 0.0)
    slowdown_s, work_s = added_s * batch, backlog * added_s
    price_s = answer.weight * (slot_s + decode_s + late_s) + slowdown_s + work_s
    return DecodeTerms(price_s, slot_s, decode_s, late_s, slowdown_s, work_s, step_s)


class HandOver:
    """From the first token until the KV is at the decode worker. Only what it does not hold
    travels, and while the prompt is computed, too."""

    def __init__(
        self,
        answer: Answer,
        columns: Columns,
        cached: Column,
        prefill_s: Column,
        costs: PairCosts,
        num_prefill: int,
    ) -> None:
        """`cached` [decode workers]: tokens; `prefill_s` [loads]."""
        self._num_bytes = (answer.num_prompt_tokens - cached) * columns.token_bytes[num_prefill:]
        self._prefill_s = prefill_s[:num_prefill]
        self._costs = costs
        self._setup_s = costs.setup_s[num_prefill:, :num_prefill]
        self._s_per_byte = costs.s_per_byte[num_prefill:, :num_prefill]

    def seconds(self) -> Matrix:
        """[decode workers, prefill workers]"""
        beyond_s = self._s_per_byte * self._num_bytes[:, None] - self._prefill_s
        seconds: Matrix = self._setup_s + np.maximum(beyond_s, 0.0)
        return seconds

    def least_s(self) -> Column:
        """[decode workers]: no less from any prefill worker."""
        beyond_s = self._costs.least_s_per_byte * self._num_bytes - self._prefill_s.max()
        least_s: Column = self._costs.least_setup_s + np.maximum(beyond_s, 0.0)
        return least_s

    def seconds_of(self, rows: Positions, columns: Positions) -> Matrix:
        """[rows, columns]: of these decode and prefill workers."""
        pairs = rows[:, None], columns
        beyond_s = self._s_per_byte[pairs] * self._num_bytes[rows, None] - self._prefill_s[columns]
        seconds: Matrix = self._setup_s[pairs] + np.maximum(beyond_s, 0.0)
        return seconds
