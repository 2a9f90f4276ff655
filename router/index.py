"""The prefix index: which worker holds which grain. A bounded cache of the workers' truth.

It knows hashes and workers' bits only: no tokens, no prices, no sockets, no clock of its own.
A wrong entry makes a request slower, never wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.types import CacheChange, GrainHash, Incarnation, WorkerId
from router.grain_masks import ENTRY_BYTES, GrainMasks
from router.numbering import Ends, Numbering, bits_of

_NO_MASK = -1  # no entry has it


@dataclass(slots=True, eq=False)
class _Holder:
    """One worker's presence: its bit, and how many grains carry it."""

    worker: WorkerId
    incarnation: Incarnation
    bit: int
    num_grains: int = 0
    fresh_at: float = 0.0


@dataclass(slots=True, eq=False)
class _Sweep:
    """Clears the bits of purged holders a few keys at a time."""

    bits: int
    keys: list[GrainHash]
    position: int = 0


@dataclass(slots=True, eq=False)
class PrefixIndex:
    """Knows who holds which grain, by one bit a worker.

    Purging clears one bit of the live mask, at once; the bit returns to use when a sweep,
    paid for in small parts by later changes, has cleared it from every entry. Over the byte
    budget the index forgets what was stored or matched longest ago.
    """

    budget_bytes: int
    numbering: Numbering = field(default_factory=Numbering)
    num_forgotten: int = 0  # grains dropped for the budget while a worker still held them
    _masks: GrainMasks = field(init=False)
    _holders: dict[WorkerId, _Holder] = field(default_factory=dict)
    _by_bit: dict[int, _Holder] = field(default_factory=dict)
    _live: int = 0
    _dead: int = 0
    _sweep: _Sweep | None = None

    def __post_init__(self) -> None:
        self._masks = GrainMasks(max(64, self.budget_bytes // ENTRY_BYTES))

    @property
    def capacity(self) -> int:
        """Grains that are never forgotten while workers hold no more."""
        return self._masks.capacity

    @property
    def num_grains(self) -> int:
        return len(self._masks)

    @property
    def num_bytes(self) -> int:
        """Estimated resident bytes."""
        return self._masks.num_bytes

    def num_grains_of(self, worker: WorkerId) -> int:
        holder = self._holders.get(worker)
        return holder.num_grains if holder else 0

    def match(self, hashes: Sequence[GrainHash]) -> Ends:
        """Finds how many leading grains each worker holds.

        Linear by need: eviction makes holes, so a later grain says nothing of an earlier one.
        """
        ends: list[tuple[int, int]] = []
        active = self._live
        if not active:
            return ends
        last: int | None = _NO_MASK
        for depth, mask in enumerate(self._masks.masks_of(hashes)):
            if mask is last:  # most often a grain is held as the one before
                continue
            held = active & mask if mask else 0
            if held != active:
                if depth:
                    ends.append((depth, active ^ held))
                active = held
                if not active:
                    break
            last = mask
        else:
            if hashes:
                ends.append((len(hashes), active))
        return ends

    def apply(self, worker: WorkerId, incarnation: Incarnation, change: CacheChange) -> bool:
        """Follows one event. False: this life of the worker is not known, ask for a snapshot."""
        holder = self._holders.get(worker)
        if holder is None or holder.incarnation != incarnation:
            return False
        stored, evicted = change.stored, change.evicted
        if stored:
            holder.num_grains += self._masks.add(holder.bit, stored)
        if evicted:
            holder.num_grains -= self._masks.remove(holder.bit, evicted)
        if self._dead or self._sweep or self._masks.has_dropped:
            self._tidy(256 + 4 * (len(stored) + len(evicted)))
        return True

    def replace(
        self, worker: WorkerId, incarnation: Incarnation, hashes: Sequence[GrainHash]
    ) -> None:
        """Takes a snapshot in place of all that was known of this worker."""
        fresh_at = self._holders[worker].fresh_at if worker in self._holders else 0.0
        self.purge(worker)
        bit = self.numbering.bit_of(worker)
        holder = _Holder(worker, incarnation, bit, fresh_at=fresh_at)
        self._holders[worker] = self._by_bit[bit] = holder
        self._live |= bit
        self.apply(worker, incarnation, CacheChange(stored=tuple(hashes)))

    def purge(self, worker: WorkerId, incarnation: Incarnation | None = None) -> None:
        """Forgets a worker at once; with an incarnation, only that life of it."""
        holder = self._holders.get(worker)
        if holder is not None:
            if incarnation not in (None, holder.incarnation):
                return
            del self._holders[worker], self._by_bit[holder.bit]
            self._live &= ~holder.bit
        self._dead |= self.numbering.give_up(worker)
        if not self._live:
            self._clear()

    def mark_fresh(self, worker: WorkerId, now: float) -> None:
        """All events that this worker sent until `now` have been applied."""
        if holder := self._holders.get(worker):
            holder.fresh_at = now

    def staleness_s(self, now: float) -> dict[WorkerId, float]:
        return {worker: now - holder.fresh_at for worker, holder in self._holders.items()}

    def check(self) -> None:
        """Every count equals what the entries say."""
        counted = dict.fromkeys(self._by_bit, 0)
        for mask, num in self._masks.check().items():
            for bit in bits_of(mask & self._live):
                counted[bit] += num
        for bit, holder in self._by_bit.items():
            assert holder.num_grains == counted[bit], f"{holder.worker} miscounted"
            assert self._holders[holder.worker] is holder
            assert self.numbering.bit_of(holder.worker) == bit
        self.numbering.check(self._dead | (self._sweep.bits if self._sweep else 0))
        assert self._live == sum(self._by_bit)

    def _tidy(self, num_keys: int) -> None:
        """A small part of what can wait: counting what was dropped, then clearing dead bits."""
        lost = self._masks.free(num_keys)
        for mask, num in lost.items():
            held = mask & self._live
            self.num_forgotten += num if held else 0
            for bit in bits_of(held):
                self._by_bit[bit].num_grains -= num
        if not lost:  # nothing dropped is left that could have a bit of the dead
            self._continue_sweep(num_keys)

    def _continue_sweep(self, num_keys: int) -> None:
        if self._sweep is None:
            if not self._dead:
                return
            self._sweep = _Sweep(self._dead, self._masks.grains())
            self._dead = 0
        sweep = self._sweep
        stop = sweep.position + num_keys
        self._masks.remove(sweep.bits, sweep.keys[sweep.position : stop])
        sweep.position = stop
        if stop >= len(sweep.keys):
            self.numbering.free(sweep.bits)
            self._sweep = None

    def _clear(self) -> None:
        """Nobody is left: nothing to sweep."""
        self._masks.clear()
        self.numbering.free(self._dead | (self._sweep.bits if self._sweep else 0))
        self._dead, self._sweep = 0, None
