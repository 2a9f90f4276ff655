"""Cuts one step's attention into units of work for a GPU, as tables of integers. Knows no Triton.

A unit is some tokens of one row against some of the keys that they see. How a row is cut depends on
that row alone: a token alone has the same partial sums whatever runs beside it.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.attention import Query

Ints: TypeAlias = npt.NDArray[np.int64]

# A row's keys are split until its programs are so many: a large card is busy with one row then.
PROGRAMS_A_ROW = 256
# The least that is split off: with fewer, writing and joining what they gave is no longer little.
PIECE_KEYS = 256


class QueryColumns(NamedTuple):
    """One step's queries as columns."""

    first_token: Ints  # in the batch
    num_new: Ints
    start: Ints
    table: Ints  # where its block table begins among all tables

    @classmethod
    def of(cls, queries: Sequence[Query], block_size: int) -> "QueryColumns":
        num_new = np.array([query.num_new for query in queries], dtype=np.int64)
        start = np.array([query.start for query in queries], dtype=np.int64)
        num_blocks = -(-(start + num_new) // block_size)
        return cls(_before(num_new), num_new, start, _before(num_blocks))


class UnitTable(NamedTuple):
    # [num_units, 8]: first token in the batch, number of tokens, position of the first, where its
    # block table begins, first key, the key behind the last, row of its first partial (-1: its
    # output is whole), 0
    units: Ints
    # [num_merged_tokens, 4]: token in the batch, its first partial, number of them, their distance
    merges: Ints
    num_partials: int


def cut(rows: QueryColumns, window: int | None, unit_tokens: int, num_kv_heads: int) -> UnitTable:
    """Cuts rows into units of at most `unit_tokens` tokens, and their keys where there are few."""
    num_units = -(-rows.num_new // unit_tokens)  # of each row
    row, place = _expanded(num_units)
    first = place * unit_tokens
    num_tokens = np.minimum(rows.num_new[row] - first, unit_tokens)
    position = rows.start[row] + first
    first_key = np.maximum(position - window + 1, 0) if window else np.zeros_like(position)
    stop_key = position + num_tokens

    num_keys = stop_key - first_key
    most_pieces = np.maximum(1, PROGRAMS_A_ROW // (num_units[row] * num_kv_heads))
    piece_keys = _round_up(-(-num_keys // most_pieces), PIECE_KEYS)
    num_pieces = -(-num_keys // piece_keys)
    num_partials = np.where(num_pieces > 1, num_pieces * num_tokens, 0)
    first_partial = _before(num_partials)

    unit, piece = _expanded(num_pieces)
    begin = first_key[unit] + piece * piece_keys[unit]
    end = np.minimum(begin + piece_keys[unit], stop_key[unit])
    partial = np.where(num_pieces[unit] > 1, first_partial[unit] + piece * num_tokens[unit], -1)
    first_token = rows.first_token[row] + first
    columns = (first_token[unit], num_tokens[unit], position[unit], rows.table[row][unit])
    units = np.stack([*columns, begin, end, partial, np.zeros_like(begin)], axis=1)
    # The longest begin first, so that all end at about one time.
    units = units[np.argsort(begin - end, kind="stable")]

    split, token = _expanded(np.where(num_pieces > 1, num_tokens, 0))
    merges = (first_token[split] + token, first_partial[split] + token)
    return UnitTable(
        units=units,
        merges=np.stack([*merges, num_pieces[split], num_tokens[split]], axis=1),
        num_partials=int(num_partials.sum()),
    )


def _expanded(counts: Ints) -> tuple[Ints, Ints]:
    """(index, place within it), each index as often as its count says."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - _before(counts)[index]


def _before(counts: Ints) -> Ints:
    return np.cumsum(counts) - counts


def _round_up(numbers: Ints, multiple: int) -> Ints:
    return -(-numbers // multiple) * multiple
