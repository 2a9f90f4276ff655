"""The prefix index: which worker holds which grain. A bounded cache of the workers' truth.

It knows hashes and worker slots only: no tokens, no prices, no sockets, no clock of its own.
A wrong entry makes a request slower, never wrong.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from cluster.types import CacheChange, GrainHash, Incarnation, WorkerId

# One entry at its dearest, CPython 3.11: a 16-byte `bytes` object takes 64; a dict under
# churn keeps up to 4 entry rows of 24 and 6 slots of 4 for each live key. The masks are shared.
ENTRY_BYTES = 64 + 4 * 24 + 6 * 4
_MAX_SHARED_MASKS = 1 << 15
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
    """Grain hash -> bitmask of the workers that hold it.

    Purging clears one bit of the live mask, at once; the bit returns to use when a sweep,
    paid for in small parts by later changes, has cleared it from every entry. Over the byte
    budget the index forgets what was stored or matched longest ago.
    """

    budget_bytes: int
    num_forgotten: int = 0  # grains dropped for the budget while a worker still held them
    _masks: dict[GrainHash, int] = field(default_factory=dict)
    _shared: dict[int, int] = field(default_factory=dict)
    _holders: dict[WorkerId, _Holder] = field(default_factory=dict)
    _by_bit: dict[int, _Holder] = field(default_factory=dict)
    _free_bits: list[int] = field(default_factory=list)
    _num_bits: int = 0
    _live: int = 0
    _dead: int = 0
    _sweep: _Sweep | None = None

    @property
    def capacity(self) -> int:
        return max(64, self.budget_bytes // ENTRY_BYTES)

    @property
    def num_grains(self) -> int:
        return len(self._masks)

    @property
    def num_bytes(self) -> int:
        """Estimated resident bytes: the table as it is, and one `bytes` object a key."""
        return sys.getsizeof(self._masks) + 64 * len(self._masks) + sys.getsizeof(self._shared)

    def num_grains_of(self, worker: WorkerId) -> int:
        holder = self._holders.get(worker)
        return holder.num_grains if holder else 0

    def incarnation_of(self, worker: WorkerId) -> Incarnation | None:
        holder = self._holders.get(worker)
        return holder.incarnation if holder else None

    def match(self, hashes: Sequence[GrainHash]) -> dict[WorkerId, int]:
        """How many leading grains each worker holds; workers that hold none are left out.

        Linear by need: eviction makes holes, so a later grain says nothing of an earlier one.
        """
        active, depth = self._live, 0
        last: int | None = _NO_MASK
        matched: dict[WorkerId, int] = {}
        if not active:
            return matched
        for depth, mask in enumerate(map(self._masks.get, hashes)):
            if mask is last:  # masks are shared: most often a grain is held as the one before
                continue
            held = active & mask if mask else 0
            if held != active:
                if depth:
                    self._record(active ^ held, depth, matched)
                active = held
                if not active:
                    break
            last = mask
        else:
            depth = len(hashes)
            if depth:
                self._record(active, depth, matched)
        self._touch(hashes[:depth])
        return matched

    def apply(self, worker: WorkerId, incarnation: Incarnation, change: CacheChange) -> bool:
        """Follows one event. False: this life of the worker is not known, ask for a snapshot."""
        holder = self._holders.get(worker)
        if holder is None or holder.incarnation != incarnation:
            return False
        self._store(holder, change.stored)
        self._evict(holder, change.evicted)
        self._continue_sweep(256 + 4 * (len(change.stored) + len(change.evicted)))
        return True

    def replace(
        self, worker: WorkerId, incarnation: Incarnation, hashes: Sequence[GrainHash]
    ) -> None:
        """Takes a snapshot in place of all that was known of this worker."""
        fresh_at = self._holders[worker].fresh_at if worker in self._holders else 0.0
        self.purge(worker)
        bit = self._take_bit()
        holder = _Holder(worker, incarnation, bit, fresh_at=fresh_at)
        self._holders[worker] = self._by_bit[bit] = holder
        self._live |= bit
        self._store(holder, hashes)
        self._continue_sweep(256 + 4 * len(hashes))

    def purge(self, worker: WorkerId, incarnation: Incarnation | None = None) -> None:
        """Forgets a worker at once; with an incarnation, only that life of it."""
        holder = self._holders.get(worker)
        if holder is None or incarnation not in (None, holder.incarnation):
            return
        del self._holders[worker], self._by_bit[holder.bit]
        self._live &= ~holder.bit
        if holder.num_grains == 0 and not self._masks:
            self._free_bits.append(holder.bit)
        else:
            self._dead |= holder.bit
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
        for mask in self._masks.values():
            assert mask, "an entry that nobody holds"
            for bit in _bits(mask & self._live):
                counted[bit] += 1
        for bit, holder in self._by_bit.items():
            assert holder.num_grains == counted[bit], f"{holder.worker} miscounted"
            assert self._holders[holder.worker] is holder
        bits = [*self._by_bit, *self._free_bits, *_bits(self._dead)]
        bits += _bits(self._sweep.bits) if self._sweep else []
        assert sorted(bits) == [1 << n for n in range(self._num_bits)], "a bit lost or doubled"
        assert self._live == sum(self._by_bit)
        assert len(self._masks) <= self.capacity, "over the budget"

    def _record(self, bits: int, depth: int, matched: dict[WorkerId, int]) -> None:
        for bit in _bits(bits):
            matched[self._by_bit[bit].worker] = depth

    def _touch(self, hashes: Sequence[GrainHash]) -> None:
        """Makes matched grains the youngest, roots last, once ages may begin to matter."""
        masks = self._masks
        if 2 * len(masks) > self.capacity:
            for grain in reversed(hashes):
                masks[grain] = masks.pop(grain)

    def _store(self, holder: _Holder, hashes: Sequence[GrainHash]) -> None:
        masks, bit, shared = self._masks, holder.bit, self._shared
        if len(shared) > _MAX_SHARED_MASKS:
            shared.clear()
        # Leaves first: a chain is useless without its root, so the root must outlive them.
        for grain in reversed(hashes):
            mask = masks.get(grain, 0)
            if not mask & bit:
                masks[grain] = shared.setdefault(mask | bit, mask | bit)
                holder.num_grains += 1
                if len(masks) > self.capacity:
                    self._forget(max(1, self.capacity // 64))

    def _evict(self, holder: _Holder, hashes: Iterable[GrainHash]) -> None:
        for grain in hashes:
            mask = self._masks.get(grain, 0)
            if mask & holder.bit:
                self._write(grain, mask & ~holder.bit)
                holder.num_grains -= 1

    def _write(self, grain: GrainHash, mask: int) -> None:
        if mask:
            self._masks[grain] = self._shared.setdefault(mask, mask)
        else:
            del self._masks[grain]

    def _forget(self, count: int) -> None:
        """Drops the oldest entries. In batches: a dict steps over deleted rows at its front."""
        for grain in list(islice(self._masks, count)):
            held = self._masks.pop(grain) & self._live
            self.num_forgotten += 1 if held else 0
            for bit in _bits(held):
                self._by_bit[bit].num_grains -= 1

    def _take_bit(self) -> int:
        if self._free_bits:
            self._free_bits.sort(reverse=True)
            return self._free_bits.pop()
        self._num_bits += 1
        return 1 << (self._num_bits - 1)

    def _continue_sweep(self, num_keys: int) -> None:
        if self._sweep is None:
            if not self._dead:
                return
            self._sweep = _Sweep(self._dead, list(self._masks))
            self._dead = 0
        sweep = self._sweep
        stop = sweep.position + num_keys
        for grain in sweep.keys[sweep.position : stop]:
            mask = self._masks.get(grain, 0)
            if mask & sweep.bits:
                self._write(grain, mask & ~sweep.bits)
        sweep.position = stop
        if stop >= len(sweep.keys):
            self._free_bits += _bits(sweep.bits)
            self._sweep = None

    def _clear(self) -> None:
        """Nobody is left: nothing to sweep."""
        self._masks = {}
        self._shared.clear()
        self._free_bits += _bits(self._dead | (self._sweep.bits if self._sweep else 0))
        self._dead, self._sweep = 0, None


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low
        mask ^= low
