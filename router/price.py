"""Prices an answer on every decode worker, and a hand-over to it, in seconds: terms by name, each a
column. Pure. What the prompt costs is the rule's: `router/policies/priced.py`.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.load import Column, Columns
from router.pair_costs import CANNOT, Matrix, PairCosts

_FEW_PAIRS = 4096  # to find those that can win takes longer than to price as few as these

Positions = NDArray[np.intp]


def times(weight: float, seconds: Column) -> Column:
    """A weight is 1 most often: then the very same."""
    return seconds if weight == 1.0 else weight * seconds


def term_at(seconds: Column | None, position: int) -> float:
    """Reads a term that may be 0 for all, and is None then."""
    return 0.0 if seconds is None else float(seconds[position])


class ExpectedAnswer(NamedTuple):
    """Says what will be decoded, as far as it is known beforehand."""

    num_prompt_tokens: int
    num_choices: int
    num_steps: float  # predicted tokens a choice
    num_typical: float  # of such answers half have no more tokens
    itl_s: float  # target
    weight: float  # of its class


class DecodeTerms(NamedTuple):
    """Float64 arrays [decode workers], seconds; None: 0 for all."""

    price_s: Column  # of all but the GPU seconds that it adds
    slot_s: Column | None  # until there is room, for as much as fits not
    decode_s: Column  # this answer, at the batch it would join
    late_s: Column | None  # of these, beyond the target of its class
    slowdown_s: Column  # of the answers it would join
    added_s: Column  # GPU seconds it adds
    step_s: Column  # one step, at the batch it would join
    spare_s: Column  # so long a typical answer there may wait in all, and be within the target


def decode_terms(
    answer: ExpectedAnswer, columns: Columns, cached: Column, num_prefill: int
) -> DecodeTerms:
    """`cached` [decode workers]: prompt tokens whose KV is there."""
    decodes = slice(num_prefill, None)
    num_waiting, num_running = columns.num_waiting[decodes], columns.num_running[decodes]
    batch = num_waiting + num_running
    d1, d2 = columns.d1[decodes], columns.d2[decodes]
    num_choices, num_steps = float(answer.num_choices), float(answer.num_steps)
    num_prompt_tokens = float(answer.num_prompt_tokens)
    added_step_s = d1 * (num_prompt_tokens * num_choices) + times(num_choices, d2)
    before_s = columns.d0[decodes] + d1 * columns.num_context_tokens[decodes] + d2 * batch
    step_s = before_s + added_step_s
    decode_s = num_steps * step_s
    added_s = num_steps * added_step_s
    is_full = num_prompt_tokens - cached > columns.num_free_tokens[decodes]
    is_full |= batch >= columns.max_sequences[decodes]
    slot_s = late_s = None
    own_s = decode_s
    if np.count_nonzero(is_full):
        slot_s = is_full * decode_s * (num_waiting + 1.0) / np.maximum(num_running, 1.0)
        own_s = slot_s + own_s
    beyond_s = step_s - answer.itl_s
    spare_s = -float(answer.num_typical) * beyond_s
    if beyond_s[beyond_s.argmax()] > 0.0:
        late_s = num_steps * np.maximum(beyond_s, 0.0)
        own_s = own_s + late_s
    slowdown_s = added_s * batch
    price_s = times(answer.weight, own_s) + slowdown_s
    return DecodeTerms(price_s, slot_s, decode_s, late_s, slowdown_s, added_s, step_s, spare_s)


def hand_over_s(
    setup_s: Matrix | float,
    s_per_byte: Matrix | float,
    num_bytes: Matrix | float,
    prefill_s: Matrix | float,
) -> Matrix:
    """Seconds from the first token until the KV is there: it travels while the prompt is computed,
    too. Of one shape, or that broadcast; one is an array at least. In place: it may be large."""
    seconds: Matrix = s_per_byte * num_bytes - prefill_s  # type: ignore[assignment]
    np.maximum(seconds, 0.0, out=seconds)
    seconds += setup_s
    return seconds


class Remote(NamedTuple):
    """The pairs of a decode worker and one that computes for it, priced; those that cannot be the
    cheapest left out."""

    rows: Positions  # decode workers
    columns: Positions  # prefill workers
    hand_over_s: Matrix  # [rows, columns]
    price_s: Matrix  # [rows, columns]


class HandOverPrice:
    """Prices the way from the first token until the KV is at the decode worker. Only what it does
    not hold travels, and while the prompt is computed, too."""

    __slots__ = ("_costs", "_num_bytes", "_prefill_s", "_s_per_byte", "_setup_s", "_weight")

    def __init__(
        self,
        answer: ExpectedAnswer,
        columns: Columns,
        cached: Column,
        prefill_s: Column,
        costs: PairCosts,
        num_prefill: int,
    ) -> None:
        """`cached` [decode workers]: tokens; `prefill_s` [loads]."""
        self._num_bytes = (answer.num_prompt_tokens - cached) * columns.token_bytes[num_prefill:]
        self._weight = answer.weight
        self._prefill_s = prefill_s[:num_prefill]
        self._costs = costs
        self._setup_s = costs.setup_s[num_prefill:, :num_prefill]
        self._s_per_byte = costs.s_per_byte[num_prefill:, :num_prefill]

    def remote(
        self,
        decode_s: Column,
        compute_s: Column,
        local_s: Column,
        apart: NDArray[np.bool_] | None,
        *,
        all_of_them: bool,
    ) -> Remote:
        """`decode_s` and `local_s`, a prompt computed where it decodes [decode workers];
        `compute_s` [prefill workers]; `apart`: whom no way joins."""
        if all_of_them or len(decode_s) * len(compute_s) <= _FEW_PAIRS:
            rows, columns = _first(len(decode_s)), _first(len(compute_s))
            num_bytes = self._num_bytes[:, None]
            moved_s = hand_over_s(self._setup_s, self._s_per_byte, num_bytes, self._prefill_s)
        else:
            rows, columns = self._contenders(decode_s, compute_s, local_s)
            moved_s = self._seconds_of(rows, columns)
            decode_s, compute_s = decode_s[rows], compute_s[columns]
        price_s = times(self._weight, moved_s) + decode_s[:, None]
        price_s += compute_s
        if apart is not None:
            price_s += CANNOT * apart[np.ix_(rows, columns)]
        return Remote(rows, columns, moved_s, price_s)

    def _contenders(
        self, decode_s: Column, compute_s: Column, local_s: Column
    ) -> tuple[Positions, Positions]:
        """Rows and columns that can hold the least price: with the least hand-over there is they
        must not be above what a good candidate costs with its own."""
        setup_s, s_per_byte = self._costs.least_setup_s, self._costs.least_s_per_byte
        least_s = hand_over_s(setup_s, s_per_byte, self._num_bytes, float(self._prefill_s.max()))
        best_s = decode_s + self._weight * least_s
        row, column = int(best_s.argmin()), int(compute_s.argmin())
        moved_s = self._seconds_of(np.array([row]), np.array([column]))[0, 0]
        good_s = decode_s[row] + self._weight * moved_s + compute_s[column]
        good_s = min(good_s, local_s.min())
        good_s += 1e-6 * abs(good_s)  # ties are drawn among all
        rows = np.flatnonzero(best_s <= good_s - compute_s[column])
        columns = np.flatnonzero(compute_s <= good_s - best_s[row])
        return rows, columns

    def _seconds_of(self, rows: Positions, columns: Positions) -> Matrix:
        """[rows, columns]: of these decode and prefill workers."""
        pairs = rows[:, None], columns
        num_bytes, prefill_s = self._num_bytes[rows, None], self._prefill_s[columns]
        return hand_over_s(self._setup_s[pairs], self._s_per_byte[pairs], num_bytes, prefill_s)


@lru_cache(maxsize=64)
def _first(num: int) -> Positions:
    """The first so many positions."""
    positions = np.arange(num)
    positions.flags.writeable = False
    return positions
