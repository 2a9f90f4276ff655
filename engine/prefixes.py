"""How much of each waiting prompt is cached, told by few lookups: where a grain is cached, those
before it are as a rule. Good for estimates and for who waits for whom; `BlockPool.match` is what
counts when a prompt is admitted.
"""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Hashes

from cluster.types import GrainHash
from engine.block_pool import BlockPool
from engine.sequence import Sequence


class _Known:
    __slots__ = ("hashes", "leader", "num_cached", "num_shared")

    def __init__(self, hashes: Hashes[GrainHash]) -> None:
        self.hashes = hashes  # of what may be reused: all but the last token
        self.num_cached = 0  # leading grains
        self.leader: Hashes[GrainHash] | None = None  # whose prompt it was compared with
        self.num_shared = 0  # leading grains

    def compare(self, leader: Hashes[GrainHash]) -> int:
        """Leading grains that both have."""
        hashes, shorter = self.hashes, min(len(self.hashes), len(leader))
        self.leader = leader
        self.num_shared = _num_leading(shorter, lambda i: hashes[i] == leader[i])
        return self.num_shared


class Prefixes:
    """Owns what is known of the waiting prompts, each of which is added and forgotten."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._known: dict[Sequence, _Known] = {}

    def add(self, sequence: Sequence) -> None:
        reusable = sequence.num_tokens - 1 if sequence.reuses_prefix else 0
        self._known[sequence] = _Known(sequence.hashes(reusable, self._pool.hash_grain))

    def forget(self, sequence: Sequence) -> None:
        self._known.pop(sequence, None)

    def first_missing(self, sequence: Sequence) -> GrainHash | None:
        """The first grain that would have to be computed; None: but for the last token, all is
        cached."""
        known = self._refreshed(sequence)
        return known.hashes[known.num_cached] if known.num_cached < len(known.hashes) else None

    def num_expected(
        self, waiting: Iterable[Sequence], leaders: dict[GrainHash, Hashes[GrainHash]]
    ) -> Iterator[int]:
        """Of each, leading tokens that will be cached at its turn: cached now, or computed before
        by who is ahead of it. `leaders` holds these by their first missing grain; it is added
        to."""
        grain = self._pool.hash_grain
        for sequence in waiting:
            known = self._refreshed(sequence)
            hashes, num_grains = known.hashes, known.num_cached
            if num_grains < len(hashes):
                leader = leaders.setdefault(hashes[num_grains], hashes)
                if leader is known.leader:
                    num_grains = known.num_shared
                elif leader is not hashes:
                    num_grains = known.compare(leader)
            yield num_grains * grain

    def _refreshed(self, sequence: Sequence) -> _Known:
        """Looks at where it ended the last time; farther only where that has changed."""
        known, is_cached = self._known[sequence], self._pool.has_grain
        hashes, num = known.hashes, known.num_cached
        is_longer = num < len(hashes) and is_cached(hashes[num])
        if is_longer or (num and not is_cached(hashes[num - 1])):
            known.num_cached = _num_leading(len(hashes), lambda i: is_cached(hashes[i]))
        return known


def _num_leading(num: int, holds: Callable[[int], bool]) -> int:
    """Of `num`, how many hold from the start on, if none holds behind the first that does not."""
    low, high = 0, num
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            low = middle + 1
        else:
            high = middle
    return low
