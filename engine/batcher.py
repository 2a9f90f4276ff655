"""Forms batches: who runs, who waits, who is put back. Pure; both workers' schedulers use it.

Order of claims on one step: running sequences that decode, then prompts, begun or waiting, in the
order of the queue. A prompt takes all the blocks it needs when it is admitted, so that no two
prompts hold half of what both want. Whoever is put back is computed again later; its tokens stay.
That befalls the sequence that is last in that order under memory pressure; what a request runs
above its share while others wait; and, before both, what nobody reads.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass

from cluster.types import BlockId, DecodeCost, LoadReport, PrefillCost, SampledToken, TokenLogprob
from engine.backlog import backlog, decoding_s, running_s
from engine.batch import Batch, BatchRow, RowResult
from engine.block_pool import BlockPool
from engine.budget import Budget, StepRoom
from engine.queue import Queue
from engine.sequence import Sequence
from engine.shares import Elsewhere, Shares, has_run_enough

_NO_DECODE = DecodeCost(d0=0.0)
PAUSE_S = 2.0  # so long a paused sequence keeps blocks that others wait for
_MAX_ROOM_BLOCKS = 64  # how far ahead neighbouring blocks are kept clear for a sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Holds what a step gave one sequence."""

    sequence: Sequence
    token: SampledToken | None = None  # None: only a chunk of the prompt was computed
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(slots=True, eq=False)
class BatcherCounters:
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    num_computed_tokens: int = 0
    num_copies: int = 0

    def as_dict(self) -> dict[str, float]:
        """Gives the counters by the names of a load report."""
        return {
            "preemptions": self.num_preemptions,
            "cached_tokens": self.num_cached_tokens,
            "computed_tokens": self.num_computed_tokens,
            "copied_blocks": self.num_copies,
        }


class Batcher:
    """Owns the sequences of one worker and their share of the pool."""

    def __init__(
        self,
        pool: BlockPool,
        budget: Budget,
        *,
        prefill_cost: Callable[[], PrefillCost],
        decode_cost: Callable[[], DecodeCost] = lambda: _NO_DECODE,
        decodes: bool = True,
        reserve_blocks: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`decodes`: whether a sequence goes on running here after its first token. `clock` is
        the one by which sequences are due."""
        self.pool = pool
        self.budget = budget
        self.running: list[Sequence] = []  # oldest first
        self.counters = BatcherCounters()
        self._prefill_cost = prefill_cost
        self._decode_cost = decode_cost
        self._decodes = decodes
        self._reserve_blocks = reserve_blocks
        self._clock = clock
        self._queue = Queue(pool, budget.max_sequences)
        self._in_flight: Batch | None = None
        self._in_flight_since = 0.0  # by the clock
        self._dropped: list[Sequence] = []  # to be released when the batch in flight ends
        self._prompt_logprobs: dict[Sequence, list[TokenLogprob]] = {}

    @property
    def waiting(self) -> list[Sequence]:
        """Next first."""
        return self._queue.waiting

    @property
    def paused(self) -> set[Sequence]:
        """Running or waiting, but nobody reads them."""
        return self._queue.paused

    @property
    def dropped(self) -> list[Sequence]:
        """Ended while the batch in flight computes them."""
        return self._dropped

    @property
    def elsewhere(self) -> Elsewhere:
        return self._queue.elsewhere

    # -- coming and going --------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence whose prompt must be computed here.

        Its block table may hold a prefix that was brought here for it. It does not wait for
        blocks with that in its hand for ever: when nothing else runs, the prefix is let go.
        What it finds cached counts as used now. It is not held: a queue holds no memory.
        """
        self._queue.enter(sequence)
        self._queue.wait(sequence)
        self.pool.touch(self._cached_prefix(sequence))

    def join(self, sequence: Sequence) -> None:
        """Takes over a sequence whose blocks are already filled, and its references."""
        self._queue.enter(sequence)
        self._store_complete_blocks(sequence)
        self.running.append(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Ends a sequence in any state; its blocks return now, or after the running step."""
        self.paused.discard(sequence)
        if sequence in self.waiting:
            self._queue.wait_no_more(sequence)
            self.release(sequence)
        elif sequence in self.running:
            self.running.remove(sequence)
            if self._is_in_flight(sequence):
                self._dropped.append(sequence)
            else:
                self.release(sequence)
        self._queue.leave(sequence)
        self._prompt_logprobs.pop(sequence, None)

    def detach(self, sequence: Sequence) -> None:
        """Stops running a sequence that keeps its blocks; `release` gives them back."""
        self.running.remove(sequence)
        self._queue.leave(sequence)

    def release(self, sequence: Sequence) -> None:
        blocks, sequence.block_table = sequence.block_table, []
        self.pool.release(blocks)

    def pause(self, sequence: Sequence) -> None:
        """Stops a sequence that nobody reads: it needs no slot, and keeps blocks for a while."""
        if sequence not in self.paused and (sequence in self.running or sequence in self.waiting):
            self.paused.add(sequence)
            sequence.paused_at = self._clock()

    def resume(self, sequence: Sequence) -> None:
        """Lets a paused sequence go on, or wait for a slot where others have taken its own."""
        if sequence in self.running and not self._has_slot(sequence):
            self._put_back(sequence)
        self.paused.discard(sequence)

    # -- blocks for one sequence -------------------------------------------------------------

    def reserve(self, sequence: Sequence, *, head_room_blocks: int = 0) -> bool:
        """Gives a sequence its cached prefix and blocks for all its tokens; all or nothing.

        Afterwards `num_cached` tokens are there and the rest of the table is unwritten.
        """
        prefix = self._cached_prefix(sequence)
        wanted = self._num_missing(sequence, prefix)
        spare = self.pool.num_available - self._num_unheld(prefix)
        if not self._suffices(spare, wanted, head_room_blocks):
            return False
        self.pool.hold(prefix)
        self.release(sequence)  # what it held while it waited is in its prefix
        fresh = self.pool.allocate(
            wanted, after=prefix[-1] if prefix else None, room=self._room(sequence)
        )
        assert fresh is not None
        sequence.block_table = prefix + fresh
        sequence.num_computed = len(prefix) * self.pool.block_size
        sequence.num_stored = len(prefix)
        sequence.whole_from, sequence.is_exact = 0, True
        if not sequence.num_preemptions:
            sequence.num_cached = sequence.num_computed
            self.counters.num_cached_tokens += sequence.num_cached
        return True

    # -- one step ----------------------------------------------------------------------------

    def next_batch(self) -> Batch | None:
        """The next step, or None when nothing can run now. One batch is in flight at most."""
        assert self._in_flight is None, "the last batch has not been completed"
        self.make_way()
        rows: list[BatchRow] = []
        copies: list[tuple[BlockId, BlockId]] = []
        self._add_decode_rows(rows, copies)
        self._add_prompt_rows(rows)
        if not rows:
            return None
        self._in_flight = Batch(rows=tuple(rows), copies=tuple(copies))
        self._in_flight_since = self._clock()
        self.counters.num_copies += len(copies)
        return self._in_flight

    def complete(self, results: Sequences[RowResult]) -> list[Drawn]:
        """Takes in what the step computed. A sequence dropped meanwhile gives nothing."""
        batch, self._in_flight = self._in_flight, None
        assert batch is not None
        drawn: list[Drawn] = []
        dropped, self._dropped = self._dropped, []
        for row, result in zip(batch.rows, results, strict=True):
            self.counters.num_computed_tokens += row.num_new
            if row.sequence not in dropped:
                self._take_result(row, result, drawn)
        for sequence in dropped:
            self.release(sequence)
        return drawn

    def abort_batch(self) -> list[Sequence]:
        """The engine failed: drops and returns every sequence of the batch in flight."""
        batch, self._in_flight = self._in_flight, None
        assert batch is not None
        dropped, self._dropped = self._dropped, []
        for sequence in dropped:
            self.release(sequence)
        failed = [row.sequence for row in batch.rows if row.sequence in self.running]
        for sequence in failed:
            self.drop(sequence)
        return failed

    @property
    def num_active(self) -> int:
        """Sequences that take a slot."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        return self._queue.num_waiting

    @property
    def num_context_tokens(self) -> int:
        return sum(s.num_computed for s in self._active)

    @property
    def _active(self) -> list[Sequence]:
        paused = self.paused
        return [s for s in self.running if s not in paused] if paused else self.running

    def load(self) -> LoadReport:
        """Reports what this worker runs and has room for; its owner adds what it alone knows."""
        now, cost = self._clock(), self._prefill_cost()
        queue = self._queue.left(self.running, self._in_flight, now)
        beside_s = decoding_s(self._active, self._decode_cost())
        so_far_s = now - self._in_flight_since
        points = backlog(
            queue,
            cost,
            step_tokens=self.budget.max_tokens,
            step_s=self.budget.chunk_s,
            running_s=running_s(self._in_flight, cost, beside_s=beside_s, so_far_s=so_far_s),
            beside_s=beside_s,
        )
        return LoadReport(
            num_running=self.num_active,
            num_waiting=self.num_waiting,
            num_queued_tokens=sum(work.num_new for work in queue),
            num_context_tokens=self.num_context_tokens,
            num_free_blocks=self.pool.num_available,
            num_unused_blocks=self.pool.num_free,
            tail_reuse=self.pool.tail_reuse,
            num_blocks=self.pool.num_blocks,
            backlog=points,
        )

    @property
    def has_work(self) -> bool:
        return bool(self.num_active or self.num_waiting)

    @property
    def could_run(self) -> bool:
        """Tells whether there is work for a step that could begin, were its batch formed."""
        if self.num_active:
            return True
        first = self._queue.next_in_turn(self._shares())
        return first is not None and self._is_room(first, 0)

    def check(self) -> None:
        """Raises AssertionError unless every held block is accounted for by the pool."""
        self.pool.check()
        for sequence in self.running:
            capacity = len(sequence.block_table) * self.pool.block_size
            assert sequence.num_computed <= capacity, sequence.sequence_id
            assert all(self.pool.references(b) > 0 for b in sequence.block_table)
        assert self.paused <= {*self.running, *self.waiting}

    # -- inside: rows ------------------------------------------------------------------------

    def _add_decode_rows(self, rows: list[BatchRow], copies: list[tuple[BlockId, BlockId]]) -> None:
        for sequence in list(self.running):
            if sequence.num_uncomputed != 1 or not sequence.output_ids:
                continue
            if sequence not in self.running or sequence in self.paused:
                continue  # put back for an older one, or nobody reads it
            if self._make_writable(sequence, copies, rows):
                rows.append(_decode_row(sequence))

    def _add_prompt_rows(self, rows: list[BatchRow]) -> None:
        room, has_row = StepRoom(self.budget, len(rows)), {row.sequence for row in rows}
        begun = [s for s in self._active if s not in has_row]
        for sequence in self._queue.prompts(begun, self._admit, self._shares()):
            if sequence in has_row:
                continue
            num_new = room.take(
                sequence.num_uncomputed, sequence.num_computed, self._prefill_cost()
            )
            if num_new <= 0:
                return
            has_row.add(sequence)
            rows.append(_prompt_row(sequence, num_new))
            if room.is_full:
                return

    # -- inside: whose turn it is --------------------------------------------------------------

    def make_way(self) -> bool:
        """Puts back what others hold above their due until those that wait have theirs, or nobody
        is left who ran for long enough. Returns whether anybody was put back."""
        shares = self._shares()
        if shares is None and not self.paused:
            return False
        num_preemptions = self.counters.num_preemptions
        for first in (self._queue.next_in_turn(shares), next(iter(self.elsewhere.claims), None)):
            while first and (last := self._first_to_give_way(first, shares)) is not None:
                if shares is not None and last not in self.paused:
                    shares.put_back(last)
                self._put_back(last)
        return self.counters.num_preemptions > num_preemptions

    def is_owed(self) -> bool:
        """Tells whether one that was put back comes before new claims."""
        return self._queue.is_owed(self._shares())

    def _shares(self) -> Shares | None:
        return self._queue.shares(self.running)

    def _first_to_give_way(self, first: Sequence, shares: Shares | None) -> Sequence | None:
        """Finds who is to give way to `first`, which is next of those that wait. Paused ones hold
        no slot, only blocks."""
        num_taken = self.num_active + len(self.elsewhere.reserved)
        is_room = self._is_room(first, num_taken)
        since = self._clock() - PAUSE_S
        paused = [s for s in self.running if s in self.paused and s.paused_at <= since]
        if paused and not is_room:
            return self._queue.last(paused)
        if shares is None or not shares.is_short(first):
            return None
        if is_room and num_taken + shares.num_wanted <= self.budget.max_sequences:
            return None
        above = shares.above(filter(has_run_enough, self._active))
        return self._queue.last(above) if above else None

    # -- inside: admission and memory --------------------------------------------------------

    def _admit(self, sequence: Sequence) -> bool:
        """Moves a waiting sequence to the running ones, if it can start now."""
        head_room = self.num_active
        # What was put back for a hand-over must not take its slot while its KV is on its way.
        num_promised = len(self.elsewhere.reserved) if self._queue.has_siblings else 0
        if head_room + num_promised >= self.budget.max_sequences:
            return False
        if not self.reserve(sequence, head_room_blocks=head_room) and not (
            self._let_go_of_prefixes() and self.reserve(sequence, head_room_blocks=head_room)
        ):
            return False
        self._queue.wait_no_more(sequence)
        sequence.num_output_before = len(sequence.output_ids)
        self.running.append(sequence)
        return True

    def _has_slot(self, sequence: Sequence) -> bool:
        if self.num_active >= self.budget.max_sequences:
            return False
        shares = self._shares()
        return shares is None or not shares.is_passed_over(sequence)

    def _is_room(self, sequence: Sequence, head_room_blocks: int) -> bool:
        """Tells whether there are blocks for all its tokens."""
        prefix = self._cached_prefix(sequence)
        wanted = self._num_missing(sequence, prefix)
        spare = self.pool.num_available - self._num_unheld(prefix)
        return self._suffices(spare, wanted, head_room_blocks)

    def _suffices(self, spare: int, wanted: int, head_room_blocks: int) -> bool:
        is_polite = wanted + head_room_blocks <= spare - self._reserve_blocks
        return wanted <= spare and (is_polite or self._is_alone())

    def _num_missing(self, sequence: Sequence, prefix: list[BlockId]) -> int:
        return -(-sequence.num_tokens // self.pool.block_size) - len(prefix)

    def _let_go_of_prefixes(self) -> bool:
        """Frees what waiting sequences hold while nothing runs; tells whether any held blocks."""
        holding = [] if self.num_active else [s for s in self.waiting if s.block_table]
        for sequence in holding:
            self.release(sequence)
        return bool(holding)

    def _cached_prefix(self, sequence: Sequence) -> list[BlockId]:
        """Cached blocks for all but the last token, whose logits are wanted."""
        if not sequence.reuses_prefix:
            return []
        reusable = sequence.num_tokens - 1
        return self.pool.match(sequence.hashes(reusable, self.pool.hash_grain), reusable)

    def _make_writable(
        self,
        sequence: Sequence,
        copies: list[tuple[BlockId, BlockId]],
        rows: list[BatchRow],
    ) -> bool:
        """Makes sure the next token has a slot of its own; False if it was put back itself."""
        table, pool = sequence.block_table, self.pool
        index = sequence.num_computed // pool.block_size
        is_shared = index < len(table) and pool.references(table[index]) > 1
        if index < len(table) and not is_shared:
            return True
        after = table[index - 1] if index else None
        while (fresh := pool.allocate(1, after=after, room=self._room(sequence))) is None:
            self._preempt_last(rows)
            if sequence not in self.running:
                return False
        if is_shared:
            copies.append((table[index], fresh[0]))
            pool.release([table[index]])
            table[index] = fresh[0]
        else:
            table += fresh
        return True

    def _preempt_last(self, rows: list[BatchRow]) -> None:
        """Puts back the running sequence that is due last, of those this step does not run yet;
        one that nobody reads first, then one that is above its request's share."""
        scheduled = {row.sequence for row in rows}
        candidates = [s for s in self.running if s not in scheduled]
        paused = [s for s in candidates if s in self.paused]
        shares = None if paused else self._shares()
        above = shares.above(candidates) if shares is not None else []
        self._put_back(self._queue.last(paused or above or candidates))

    def _put_back(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.release(sequence)
        sequence.num_computed = sequence.num_stored = 0
        sequence.num_preemptions += 1
        self._prompt_logprobs.pop(sequence, None)
        self.counters.num_preemptions += 1
        self._queue.wait(sequence)

    # -- inside: results ---------------------------------------------------------------------

    def _take_result(self, row: BatchRow, result: RowResult, drawn: list[Drawn]) -> None:
        sequence = row.sequence
        sequence.num_computed = row.stop
        self._store_complete_blocks(sequence)
        if result.prompt_logprobs:
            self._prompt_logprobs.setdefault(sequence, []).extend(result.prompt_logprobs)
        if not result.tokens:
            drawn.append(Drawn(sequence=sequence))
            return
        logprobs = tuple(self._prompt_logprobs.pop(sequence, ()))
        sequence.has_begun = True
        family = [sequence, *map(sequence.fork, row.choices[1:])]
        sequence.num_choices = 1
        for each, token in zip(family, result.tokens, strict=True):
            each.output_ids.append(token.token_id)
            drawn.append(Drawn(sequence=each, token=token, prompt_logprobs=logprobs))
        if not self._decodes:
            self.detach(sequence)
            return
        for twin in family[1:]:
            self.run_fork(twin)

    def run_fork(self, twin: Sequence) -> None:
        """Runs a fork on the blocks that it shares with its origin. While others wait, one that
        would go beyond the slots or its request's share waits, too, and holds no blocks."""
        self._queue.enter(twin)
        self.pool.hold(twin.block_table)
        has_slot = self._has_slot(twin)
        self.running.append(twin)
        if not has_slot and self._queue.others_wait(twin):
            self._put_back(twin)

    def _store_complete_blocks(self, sequence: Sequence) -> None:
        if not sequence.is_exact:
            return
        hashes = sequence.hashes(sequence.num_computed, self.pool.hash_grain)
        sequence.num_stored = self.pool.store(
            hashes, sequence.block_table, sequence.num_stored, whole_from=sequence.whole_from
        )

    # -- inside: small things ----------------------------------------------------------------

    def _room(self, sequence: Sequence) -> int:
        if not self._decodes:
            return 0
        left = sequence.max_num_tokens - sequence.num_tokens
        return min(left // self.pool.block_size + 1, _MAX_ROOM_BLOCKS)

    def _num_unheld(self, blocks: Sequences[BlockId]) -> int:
        return sum(1 for block in blocks if self.pool.references(block) == 0)

    def _is_alone(self) -> bool:
        return not self.running and self.pool.num_held == 0

    def _is_in_flight(self, sequence: Sequence) -> bool:
        batch = self._in_flight
        return batch is not None and any(row.sequence is sequence for row in batch.rows)


def _decode_row(sequence: Sequence) -> BatchRow:
    return BatchRow(
        sequence=sequence, start=sequence.num_computed, num_new=1, choices=(sequence.choice,)
    )


def _prompt_row(sequence: Sequence, num_new: int) -> BatchRow:
    is_last = num_new == sequence.num_uncomputed
    wants_logprobs = (
        sequence.params.sampling.num_prompt_logprobs is not None and not sequence.has_begun
    )
    return BatchRow(
        sequence=sequence,
        start=sequence.num_computed,
        num_new=num_new,
        choices=tuple(range(sequence.choice, sequence.choice + sequence.num_choices))
        if is_last
        else (),
        want_prompt_logprobs=wants_logprobs,
    )
