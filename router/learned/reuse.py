"""Says how much of a prompt a cache of so many tokens would hold, were it the cluster's only one:
what more, or fewer, workers change. Nothing is cached here but marks of when a prefix came last.

A cache that throws out what was used least recently holds a prefix as long as no more tokens than
it has room for came anew since. Bounded; looks at every so manyth grain of a prompt.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from cluster.types import GrainHash

SIZES: Final = tuple(1 << power for power in range(16, 26))  # tokens
_STRIDE_TOKENS: Final = 512
_MAX_MARKS: Final = 1 << 16


class Reuse:
    def __init__(self) -> None:
        self._marks: OrderedDict[GrainHash, int] = OrderedDict()  # -> tokens that had come by then
        self._num_tokens = 0  # that came anew

    def of(self, hashes: Sequence[GrainHash], grain_tokens: int) -> tuple[int, ...]:
        """Tokens of this prompt that a cache of each of `SIZES` would hold. It has come with
        that."""
        stride = max(1, _STRIDE_TOKENS // grain_tokens)
        stride_tokens = stride * grain_tokens
        marks, oldest, is_known = self._marks, 0, True
        num_held, num_tokens = [0] * len(SIZES), self._num_tokens
        for grain in hashes[stride - 1 :: stride]:
            mark = marks.get(grain)
            if mark is None:
                is_known = False
                self._num_tokens += stride_tokens
            elif is_known:
                oldest = max(oldest, num_tokens - mark)
                for at in range(len(SIZES) - 1, -1, -1):
                    if SIZES[at] < oldest:
                        break
                    num_held[at] += stride_tokens
            marks[grain] = self._num_tokens
            marks.move_to_end(grain)
        while len(marks) > _MAX_MARKS:
            marks.popitem(last=False)
        return tuple(num_held)
