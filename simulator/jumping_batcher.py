"""The batcher that workers use, with one short cut: many steps of pure decode at once.

As long as nobody comes, leaves or has to be put back, each step does the same for each row: a
token more, a block now and then. `jump` leaves all that as so many steps would have, in one pass
over the rows. What a step could not admit, the next ones cannot either, for memory only shrinks
meanwhile: so whoever waits does not forbid it.
"""

from engine.batcher import Batcher
from engine.sequence import Sequence


class JumpingBatcher(Batcher):
    def num_steps_ahead(self) -> int:
        """Says how many steps of pure decode come next, as far as the running ones tell: until the
        first of them has all its tokens, or memory may run out. 0: take a step by itself."""
        if self.paused or not self.running or (self.waiting and not self._has_failed_to_admit()):
            return 0
        least = self.running[0].params.max_tokens
        for sequence in self.running:
            if sequence.num_uncomputed != 1 or not sequence.has_begun:
                return 0
            least = min(least, sequence.params.max_tokens - len(sequence.output_ids))
        num = len(self.running)
        while least and self.num_blocks_for(num, least) > self.pool.num_available:
            least //= 2
        return least

    def jump(self, rows: list[Sequence], num_ended: int, num_begun: int) -> None:
        """Jumps: for each of the rows so many steps have ended, and so many begun, whose slots are
        taken.

        Of the order in which rows take blocks only the block ids tell, and nobody reads these.
        """
        size, grain = self.pool.block_size, self.pool.hash_grain
        span = max(size, grain)
        completed = []
        for index, sequence in enumerate(rows):
            start = sequence.num_computed
            num_missing = -(-(start + num_begun) // size) - len(sequence.block_table)
            if num_missing > 0:
                self._append_blocks(sequence, num_missing)
            if num_ended:
                sequence.num_computed = start + num_ended
                sequence.output_ids += [0] * num_ended
                to_span = span - start % span
                if to_span <= num_ended:
                    completed.append((to_span, index))
        for _, index in sorted(completed):
            self._store_complete_blocks(rows[index])
        self.counters.num_computed_tokens += num_ended * len(rows)

    def num_blocks_for(self, num_rows: int, num_steps: int) -> int:
        """An upper bound, as cheap as it is loose."""
        return num_rows * (num_steps // self.pool.block_size + 1)

    def _append_blocks(self, sequence: Sequence, num: int) -> None:
        table = sequence.block_table
        room = self._room(sequence)
        fresh = self.pool.allocate(num, after=table[-1] if table else None, room=room)
        assert fresh is not None, "a run was planned with too little memory"
        table += fresh

    def _has_failed_to_admit(self) -> bool:
        """Takes the next step's decision and gives it back: its slots stay taken. When it let
        somebody in or put somebody back, the step after it may go otherwise."""
        waiting = list(self.waiting)
        batch = self.next_batch()
        self._in_flight = None
        return batch is not None and waiting == self.waiting
