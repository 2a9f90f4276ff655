"""Grain hash -> bitmask of who holds it, in two generations of bounded size.

It knows bits, not workers. What is stored or asked for is of the young generation. When that is
full it becomes the old one, and the old one is dropped whole: nothing is moved or rehashed to
make room, so that memory stays as it was when the budget was first full.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from cluster.types import GrainHash

# What a grain's hash takes as `bytes`, and its row and slots of a dict at their most. Twice,
# because a generation is kept while the next one fills.
GRAIN_BYTES = 64
ENTRY_BYTES = 2 * (GRAIN_BYTES + 60)
_MAX_SHARED = 1 << 15


@dataclass(slots=True, eq=False)
class GrainMasks:
    """Never forgets while it has no more than `capacity` entries; has up to twice as many.

    Equal masks are one object, so that a walk can compare them by identity.
    """

    capacity: int
    _young: dict[GrainHash, int] = field(default_factory=dict)
    _old: dict[GrainHash, int] = field(default_factory=dict)
    _dropped: dict[GrainHash, int] = field(default_factory=dict)  # freed in small parts
    _lost: dict[int, int] = field(default_factory=dict)  # mask -> freed entries that had it
    _shared: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    @property
    def has_dropped(self) -> bool:
        """Tells whether `free` has anything to free or to tell."""
        return bool(self._dropped or self._lost)

    @property
    def num_bytes(self) -> int:
        """Estimated resident bytes, what is being freed included."""
        return self._num_kept_bytes + _num_bytes(self._dropped) + sys.getsizeof(self._shared)

    def masks_of(self, hashes: Sequence[GrainHash]) -> Iterator[int | None]:
        """The mask of each grain in turn. What is asked for is young again."""
        young, old = self._young, self._old
        if old and not old.keys().isdisjoint(hashes):
            for grain in hashes:
                if mask := old.pop(grain, 0):
                    young[grain] = mask
            if self._is_full():
                self._begin_generation()
        return map(young.get, hashes)

    def add(self, bit: int, hashes: Sequence[GrainHash]) -> int:
        """Returns how many had not this bit yet."""
        piece, num_fresh = max(1, self.capacity // 8), 0
        # Leaves first: a chain is useless without its root, so the root must outlive them.
        for stop in range(len(hashes), 0, -piece):
            num_fresh += self._add(bit, hashes[max(0, stop - piece) : stop])
            if self._is_full():
                self._begin_generation()
        return num_fresh

    def remove(self, bits: int, hashes: Iterable[GrainHash]) -> int:
        """Returns how many had one of these bits."""
        young, old, num_removed = self._young, self._old, 0
        last = left = -1
        for grain in hashes:
            masks = young if grain in young else old
            mask = masks.get(grain, 0)
            if not mask & bits:
                continue
            if mask is not last:
                last, left = mask, self._share(mask & ~bits)
            if left:
                masks[grain] = left
            else:
                del masks[grain]
            num_removed += 1
        return num_removed

    def free(self, num: int) -> dict[int, int]:
        """Frees so many of the dropped. Returns how often each mask was among those freed since
        the last call."""
        dropped = self._dropped
        for _ in range(min(num, len(dropped))):
            mask = dropped.popitem()[1]
            self._lost[mask] = self._lost.get(mask, 0) + 1
        if not dropped:
            self._dropped = {}  # the table, too
        lost, self._lost = self._lost, {}
        return lost

    def grains(self) -> list[GrainHash]:
        return [*self._young, *self._old]

    def clear(self) -> None:
        self._young, self._old, self._dropped, self._lost = {}, {}, {}, {}
        self._shared.clear()

    def check(self) -> dict[int, int]:
        """Counts how often each mask is here, with all that `free` is yet to tell of."""
        assert not self._young.keys() & self._old.keys(), "an entry of two generations"
        counts = dict(self._lost)
        for generation in (self._young, self._old, self._dropped):
            for mask in generation.values():
                assert mask, "an entry that nobody holds"
                counts[mask] = counts.get(mask, 0) + 1
        return counts

    @property
    def _num_kept_bytes(self) -> int:
        return _num_bytes(self._young) + _num_bytes(self._old)

    def _is_full(self) -> bool:
        # A table under churn is larger than one that only grows: then bytes decide.
        return len(self._young) >= self.capacity or (
            bool(self._old) and self._num_kept_bytes > ENTRY_BYTES * self.capacity
        )

    def _begin_generation(self) -> None:
        lost = self.free(len(self._dropped))  # most often all are free by now
        self._lost = lost
        self._dropped, self._old, self._young = self._old, self._young, {}

    def _add(self, bit: int, hashes: Sequence[GrainHash]) -> int:
        young, old = self._young, self._old
        num_before = len(young)
        if young.keys().isdisjoint(hashes) and (not old or old.keys().isdisjoint(hashes)):
            young.update(dict.fromkeys(reversed(hashes), self._share(bit)))
            return len(young) - num_before
        num_fresh, last, merged = 0, -1, -1
        for grain in reversed(hashes):
            mask = young.get(grain) or old.pop(grain, 0)
            if mask is not last:
                last, merged = mask, self._share(mask | bit)
            young[grain] = merged
            num_fresh += merged != mask
        return num_fresh

    def _share(self, mask: int) -> int:
        shared = self._shared
        if len(shared) > _MAX_SHARED:
            shared.clear()
        return shared.setdefault(mask, mask)


def _num_bytes(generation: dict[GrainHash, int]) -> int:
    return sys.getsizeof(generation) + GRAIN_BYTES * len(generation)
