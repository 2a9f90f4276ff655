"""Estimates how much of each waiting prompt is cached, by few lookups: where a grain is cached,
those before it are as a rule. Good for estimates and for who waits for whom; `BlockPool.match` is
what counts when a prompt is admitted.
"""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Hashes

from cluster.types import GrainHash
from engine.block_pool import BlockPool
from engine.sequence import Sequence


class _Known:
    __slots__ = ("hashes", "leaders", "num_cached", "num_reusable")

    def __init__(self, hashes: Hashes[GrainHash], num_reusable: int) -> None:
        self.hashes = hashes
        self.num_reusable = num_reusable  # leading grains: of all but the last token
        self.num_cached = 0  # leading grains
        # Whose prompts it was compared with, in the order in which they go on with this one, and
        # leading grains that both have.
        self.leaders: list[tuple[Hashes[GrainHash], int]] = []

    def num_shared(self, number: int, leader: Hashes[GrainHash]) -> int:
        """Leading grains that it has in common with this one, the so manyth of its leaders."""
        if number < len(self.leaders):
            known, num = self.leaders[number]
            if known is leader:
                return num
            del self.leaders[number:]
        hashes, shorter = self.hashes, min(self.num_reusable, len(leader))
        num = _num_leading(shorter, lambda i: hashes[i] == leader[i])
        self.leaders.append((leader, num))
        return num


class Prefixes:
    """Owns what is known of the waiting prompts, each of which is added and forgotten."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._known: dict[Sequence, _Known] = {}

    def add(self, sequence: Sequence) -> None:
        grain, num_tokens = self._pool.hash_grain, sequence.num_tokens
        num_reusable = (num_tokens - 1) // grain if sequence.reuses_prefix else 0
        self._known[sequence] = _Known(sequence.hashes(num_tokens, grain), num_reusable)

    def forget(self, sequence: Sequence) -> None:
        self._known.pop(sequence, None)

    def first_missing(self, sequence: Sequence) -> GrainHash | None:
        """The first grain that would have to be computed; None: but for the last token, all is
        cached."""
        known = self._refreshed(sequence)
        return known.hashes[known.num_cached] if known.num_cached < known.num_reusable else None

    def num_expected(
        self, waiting: Iterable[Sequence], leaders: dict[GrainHash, Hashes[GrainHash]]
    ) -> Iterator[int]:
        """Predicts, of each, the leading tokens that will be cached at its turn: cached now, or
        computed before by who is ahead of it, each going on where another ends. `leaders` holds
        these by the first grain that each computes; it is added to."""
        grain = self._pool.hash_grain
        for sequence in waiting:
            known = self._refreshed(sequence)
            hashes, num_grains, number = known.hashes, known.num_cached, 0
            while num_grains < known.num_reusable:
                leader = leaders.setdefault(hashes[num_grains], hashes)
                if leader is hashes:
                    break
                num_grains = known.num_shared(number, leader)
                number += 1
            yield num_grains * grain

    def _refreshed(self, sequence: Sequence) -> _Known:
        """Looks at where it ended the last time; farther only where that has changed."""
        known, is_cached = self._known[sequence], self._pool.has_grain
        hashes, num = known.hashes, known.num_cached
        is_longer = num < known.num_reusable and is_cached(hashes[num])
        if is_longer or (num and not is_cached(hashes[num - 1])):
            known.num_cached = _num_leading(known.num_reusable, lambda i: is_cached(hashes[i]))
        return known


def _num_leading(num: int, holds: Callable[[int], bool]) -> int:
    """Counts how many of `num` hold from the start on, if none holds behind the first that does
    not."""
    low, high = 0, num
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            low = middle + 1
        else:
            high = middle
    return low
