"""The workers as placement sees them, frozen: a row of numbers a worker, a column a number.

Rules read rows; prices are computed on whole columns. It knows no formula.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.types import MAX_BACKLOG_POINTS, WorkerId

Column = NDArray[np.float64]

_NEVER_S = 1e18  # later than any prompt is due


class Load(NamedTuple):
    """One serving worker: its last report, and what was placed there since.

    Seconds are of the router's monotonic clock. All but the name and the backlog are numbers.
    """

    worker: WorkerId
    # (due at, seconds of prompt work before a prompt that is due then), both rising; the last
    # holds for all later ones. As of `reported_s`.
    backlog: tuple[tuple[float, float], ...] = ()
    reported_s: float = 0.0
    booked_s: float = 0.0  # predicted prompt work that was placed and is in no report yet
    num_waiting: float = 0  # requests whose prompt is not being computed yet
    num_running: float = 0
    num_prompts: float = 0  # of all these, prompts that wait or are being computed
    num_prefill_tokens: float = 0  # of prompts waiting or begun, still to be computed
    num_context_tokens: float = 0  # of running answers
    # Of its KV pool; cached ones that nobody uses are free. Below 0: prompts wait for more.
    num_free_tokens: float = 0
    num_delayed: float = 0  # answers that wait while it computes a prompt
    # From here on as reported, whatever was placed there since.
    num_total_tokens: float = inf  # infinite: unknown
    num_unused_tokens: float = inf  # of the free ones, those that hold nothing: no eviction yet
    tail_reuse: float = 0.0  # share of the cached ones that became old and were found again
    max_sequences: float = inf
    token_bytes: float = 0  # of one token's KV
    c0: float = 0.0  # prefill seconds = c0 + c1 new + c2 context + c3 new context
    c1: float = 0.0
    c2: float = 0.0
    c3: float = 0.0
    d0: float = 0.0  # step seconds = d0 + d1 context + d2 batch
    d1: float = 0.0
    d2: float = 0.0
    prefill_error: float = 1.0  # actual / predicted seconds, at the ninetieth percentile
    decode_error: float = 1.0

    @property
    def num_in_flight(self) -> float:
        return self.num_waiting + self.num_running

    @property
    def kv_usage(self) -> float:
        """Share of its KV pool in use; 0 where it is unknown."""
        num_free = max(0.0, self.num_free_tokens)
        return 1.0 - num_free / self.num_total_tokens if self.is_size_known else 0.0

    @property
    def is_size_known(self) -> bool:
        return 0 < self.num_total_tokens < inf

    def wait_s(self, now_s: float, due_s: float = _NEVER_S) -> float:
        """Predicted, until the turn of a prompt that is due at `due_s`."""
        ahead_s = max((seconds for at_s, seconds in self.backlog if at_s <= due_s), default=0.0)
        return max(0.0, ahead_s - (now_s - self.reported_s)) + self.booked_s

    def prefill_s(self, num_tokens: int, num_cached: float) -> float:
        """Predicted seconds of a prompt here, so much of it cached. The last token is always
        computed: it is sampled from."""
        num_new = num_tokens - min(num_cached, num_tokens - 1)
        return self.c0 + (self.c1 + self.c3 * num_tokens) * num_new + self.c2 * num_tokens


_FIRST_NUMBER = Load._fields.index("reported_s")
NUMBERS = Load._fields[_FIRST_NUMBER:]
FIRST_REPORTED = Load._fields.index("num_total_tokens")


class Columns:
    """The numbers of all loads, a float64 array [loads] each, by the names of `Load`."""

    __slots__ = (*NUMBERS, "_due")  # made for every decision: a third of the time

    def __init__(self, numbers: NDArray[np.float64], due: NDArray[np.float64]) -> None:
        """`numbers` [len(NUMBERS), loads]; `due` [2, points, loads]: those of the backlogs."""
        (
            self.reported_s, self.booked_s, self.num_waiting, self.num_running,
            self.num_prompts, self.num_prefill_tokens, self.num_context_tokens,
            self.num_free_tokens, self.num_delayed,
            self.num_total_tokens, self.num_unused_tokens, self.tail_reuse, self.max_sequences,
            self.token_bytes, self.c0, self.c1, self.c2, self.c3, self.d0, self.d1, self.d2,
            self.prefill_error, self.decode_error,
        ) = numbers  # fmt: skip
        self._due = due

    def wait_s(self, now_s: float, due_s: Column) -> Column:
        """Gives `Load.wait_s` of all; `due_s` [loads]."""
        due_at, seconds = self._due
        ahead_s = np.maximum.reduce(seconds * (due_at <= due_s), axis=0, initial=0.0)
        wait_s: Column = np.maximum(ahead_s + self.reported_s - now_s, 0.0) + self.booked_s
        return wait_s


class LoadTable:
    """The loads of a pool in a fixed order, kept as rows and as columns; frozen on demand."""

    def __init__(self, loads: Sequence[Load], *, num_prefill: int) -> None:
        self._loads = list(loads)
        self._num_prefill = num_prefill
        rows = np.array([load[_FIRST_NUMBER:] for load in loads], dtype=np.float64)
        self._numbers = rows.reshape(len(loads), len(NUMBERS)).T.copy()
        self._due = np.empty((2, MAX_BACKLOG_POINTS, len(loads)))
        self._due[0], self._due[1] = _NEVER_S, 0.0
        self._num_points = 0  # of the longest backlog so far
        self._positions = {load.worker: position for position, load in enumerate(loads)}
        self._frozen: Loads | None = None
        for position, load in enumerate(loads):
            if load.backlog:
                self._put_backlog(position, load.backlog)

    def put(self, position: int, load: Load) -> None:
        backlog, self._loads[position] = self._loads[position].backlog, load
        self._numbers[:, position] = load[_FIRST_NUMBER:]
        if load.backlog != backlog:
            self._put_backlog(position, load.backlog)
        self._frozen = None

    def _put_backlog(self, position: int, backlog: Sequence[tuple[float, float]]) -> None:
        points = self._due[:, :, position]
        points[0], points[1] = _NEVER_S, 0.0
        kept = backlog[-MAX_BACKLOG_POINTS:]
        for number, (due_s, seconds) in enumerate(kept):  # one by one: most often they are few
            points[0, number], points[1, number] = due_s, seconds
        self._num_points = max(self._num_points, len(kept))

    def freeze(self) -> "Loads":
        if self._frozen is None:
            columns = Columns(self._numbers.copy(), self._due[:, : self._num_points].copy())
            self._frozen = Loads(
                self._loads,
                num_prefill=self._num_prefill,
                columns=columns,
                positions=self._positions,
            )
        return self._frozen


class Loads(tuple[Load, ...]):
    """Some loads, also as columns. Prefill workers come first."""

    num_prefill: int  # of them; the others decode, too

    def __new__(
        cls,
        loads: Sequence[Load] = (),
        *,
        num_prefill: int | None = None,
        columns: Columns | None = None,
        positions: dict[WorkerId, int] | None = None,
    ) -> "Loads":
        made = super().__new__(cls, loads)
        made.num_prefill = len(loads) if num_prefill is None else num_prefill
        if columns is not None:
            made.columns = columns
        if positions is not None:
            made.positions = positions
        return made

    @cached_property
    def columns(self) -> Columns:
        return LoadTable(self, num_prefill=self.num_prefill).freeze().columns

    @cached_property
    def positions(self) -> dict[WorkerId, int]:
        return {load.worker: position for position, load in enumerate(self)}

    def column_of(self, counts: Mapping[WorkerId, int], base: Column | None = None) -> Column:
        """[loads]; `base`, or 0, where none is given. Who does not serve is left out."""
        column = np.zeros(len(self)) if base is None else base.copy()
        for worker, count in counts.items():  # one by one: most often they are few
            position = self.positions.get(worker)
            if position is not None:
                column[position] = count
        return column
