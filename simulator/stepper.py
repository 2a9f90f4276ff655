"""The step loop of one modelled worker in virtual time: form a batch, let it take its seconds,
take in what it gave.

Where only answers run, many steps are put down as one *run*, which ends where the first answer
does; whatever touches the worker in the middle of it ends it with the step that then runs.
"""

from bisect import bisect_right
from collections.abc import Callable
from typing import Protocol

from decode_worker.scheduler import DecodeScheduler
from engine.batch import Batch
from engine.sequence import Sequence
from prefill_worker.scheduler import PrefillScheduler
from simulator.agenda import WAKE, Agenda
from simulator.jumping_batcher import JumpingBatcher
from simulator.modelled_engine import ModelledEngine, result_of


class Rows(Protocol):
    """Owns the sequences that run; told of the steps of a run that have ended."""

    def stepped(self, sequences: list[Sequence], ends: list[float], before_s: float | None) -> None:
        """Each of the sequences has a token more at each of `ends`; `before_s` is the end of
        the run's step before these, None at its first."""

    def finished(self, sequences: list[Sequence]) -> None:
        """They have all their tokens, and do not run any more."""


class _Run:
    """Steps put down together: `ends` of all, of which `num_ended` have been taken in. Who
    joins while the last of them runs is not among its rows.

    Slots are taken when somebody looks: `num_begun` steps have theirs."""

    __slots__ = ("ends", "num_begun", "num_ended", "rows")

    def __init__(self, rows: list[Sequence], ends: list[float]) -> None:
        self.rows = rows
        self.ends = ends
        self.num_ended = self.num_begun = 0


class Stepper:
    def __init__(
        self,
        agenda: Agenda,
        batcher: JumpingBatcher,
        engine: ModelledEngine,
        notable: Callable[[], None],
        *,
        rank: int,
        jumps: bool,
    ) -> None:
        """`notable`: called after each step in which more happened than a token for each."""
        self._agenda = agenda
        self._batcher = batcher
        self._engine = engine
        self._notable = notable
        self._rank = rank
        self._jumps = jumps
        self._scheduler: PrefillScheduler | DecodeScheduler | None = None
        self._rows: Rows | None = None
        self._run: _Run | None = None
        self._step: tuple[Batch, float] | None = None  # and when it began
        self._entry = 0  # of the end of the step or run
        self._ends_s = 0.0
        self._is_woken = False
        self._busy_since_s: float | None = None
        self.busy_s = 0.0  # without what runs now
        self._left_s: float | None = None  # frozen: of the step that ran
        self.is_stopped = False

    def drive(
        self, scheduler: PrefillScheduler | DecodeScheduler, rows: Rows | None = None
    ) -> None:
        """Without `rows` each step is taken by itself."""
        self._scheduler, self._rows = scheduler, rows

    def wake(self) -> None:
        """Something changed that may let a batch form: once all of this instant is in."""
        if not (self._is_woken or self._is_busy or self.is_stopped):
            self._is_woken = True
            self._agenda.at(self._agenda.now_s, self._look, WAKE)

    def sync(self) -> None:
        """Takes in the steps that have ended by now."""
        run = self._run
        if run is not None and not self.is_stopped:
            self._take_in(run, bisect_right(run.ends, self._agenda.now_s, run.num_ended))

    def touch(self) -> None:
        """Something from outside is about to change what runs: after the step that runs now."""
        run = self._run
        if run is None:
            return
        self.sync()
        if len(run.ends) > run.num_ended + 1:
            del run.ends[run.num_ended + 1 :]
            self._agenda.cancel(self._entry)
            self._end_at(run.ends[-1], self._end_run)

    def check_room(self) -> None:
        """Somebody may have taken memory that the run was to have."""
        run, batcher = self._run, self._batcher
        if run is not None:
            num_left = len(run.ends) - run.num_begun
            if batcher.num_blocks_for(len(run.rows), num_left) > batcher.pool.num_available:
                self.touch()

    def forget(self, sequence: Sequence) -> None:
        """It is about to be dropped from outside."""
        self.touch()
        if self._run is not None and sequence in self._run.rows:
            self._run.rows.remove(sequence)

    # -- faults ------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Stands still until `thaw`, in the middle of a step."""
        self.touch()
        self.is_stopped = True
        if self._is_busy:
            self._agenda.cancel(self._entry)
            self._left_s = self._ends_s - self._agenda.now_s

    def thaw(self) -> None:
        self.is_stopped = False
        if self._left_s is not None:
            ends_s = self._agenda.now_s + self._left_s
            self._left_s = None
            if self._run is not None:
                self._run.ends[-1] = ends_s
            self._end_at(ends_s, self._end_run if self._run is not None else self._end_step)
        self.wake()

    def stop(self) -> None:
        """Dead. What has been drawn so far was sent."""
        if self._is_busy and not self.is_stopped:
            self.sync()
            self._agenda.cancel(self._entry)
        self._rest()
        self.is_stopped = True
        self._run = self._step = None

    # -- inside ------------------------------------------------------------------------------

    @property
    def _is_busy(self) -> bool:
        return self._run is not None or self._step is not None

    def _look(self) -> None:
        self._is_woken = False
        if not (self._is_busy or self.is_stopped):
            self._busy_since_s = self._agenda.now_s
            self._begin()

    def _rest(self) -> None:
        if self._busy_since_s is not None:
            self.busy_s += self._agenda.now_s - self._busy_since_s
            self._busy_since_s = None

    def _begin(self) -> None:
        batcher, engine, now_s = self._batcher, self._engine, self._agenda.now_s
        if self._jumps and self._rows is not None and (num := batcher.num_steps_ahead()):
            rows = list(batcher.running)
            ends = engine.run_ends(now_s, batcher.num_context_tokens, len(rows), num)
            self._run = _Run(rows, ends)
            self._end_at(self._run.ends[-1], self._end_run)
            return
        assert self._scheduler is not None
        batch = self._scheduler.next_batch()
        if batch is None:
            self._rest()
            return
        self._step = batch, now_s
        self._end_at(now_s + engine.step_s(batch), self._end_step)

    def _end_at(self, time_s: float, action: Callable[[], None]) -> None:
        self._ends_s = time_s
        self._entry = self._agenda.at(time_s, action, self._rank)

    def _end_step(self) -> None:
        assert self._step is not None
        assert self._scheduler is not None
        (batch, begin_s), self._step = self._step, None
        seconds = self._agenda.now_s - begin_s
        self._engine.ran(1)
        num_before = len(self._batcher.running)
        self._is_woken = True  # whatever is told now, the next batch forms below
        self._scheduler.complete(batch, result_of(batch, seconds))
        self._is_woken = False
        if batch.prompts or len(self._batcher.running) != num_before:
            self._notable()
        self._begin()

    def _end_run(self) -> None:
        run, batcher = self._run, self._batcher
        assert run is not None
        assert self._rows is not None
        self._take_in(run, len(run.ends))
        self._run = None
        finished = [s for s in run.rows if s.params.max_tokens == len(s.output_ids)]
        for sequence in finished:
            batcher.drop(sequence)
        self._is_woken = True
        if finished:
            self._rows.finished(finished)
        assert isinstance(self._scheduler, DecodeScheduler)
        self._scheduler.release([])  # as after every step: who waits for blocks is asked again
        self._is_woken = False
        if finished:
            self._notable()
        self._begin()

    def _take_in(self, run: _Run, stop: int) -> None:
        """The steps of a run before `stop` have ended; the next one runs, if there is one."""
        first, ends = run.num_ended, run.ends
        num_begun = min(stop + 1, len(ends))
        if num_begun > run.num_begun or stop > first:
            self._batcher.jump(run.rows, stop - first, num_begun - first)
            run.num_ended, run.num_begun = stop, num_begun
        if stop > first:
            assert self._rows is not None
            self._engine.ran(stop - first)
            self._rows.stepped(run.rows, ends[first:stop], ends[first - 1] if first else None)
