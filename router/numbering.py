"""One numbering of the workers, for all who speak of them by bits: the index and what is expected.

Who holds how much of a prompt is told as *ends*, and becomes a column in the order of the loads.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cluster.types import WorkerId

_MAX_SEATS = 1 << 12  # sets of workers whose positions are kept

# So many leading grains, and the bits of the workers that hold just so many; rising, none twice.
Ends = Sequence[tuple[int, int]]


@dataclass(slots=True, eq=False)
class Numbering:
    """Each worker has one bit. One that it has given up is nobody's until it is freed."""

    version: int = 0  # rises whenever somebody's bit is another than before
    _bits: dict[WorkerId, int] = field(default_factory=dict)
    _workers: list[WorkerId] = field(default_factory=list)  # by the number of the bit
    _free: list[int] = field(default_factory=list)
    _positions: Mapping[WorkerId, int] | None = None  # that `column` was last asked for
    _seats: dict[int, list[int]] = field(default_factory=dict)  # bits -> positions of the workers

    def bit_of(self, worker: WorkerId) -> int:
        return self._bits.get(worker) or self._take_bit(worker)

    def give_up(self, worker: WorkerId) -> int:
        """Returns the bit that it had, to be freed once nobody can meet it any more."""
        bit = self._bits.pop(worker, 0)
        if bit:
            self._change()
        return bit

    def free(self, bits: int) -> None:
        self._free += bits_of(bits)
        self._free.sort(reverse=True)

    def workers_of(self, bits: int) -> list[WorkerId]:
        workers = []
        while bits:
            number = bits.bit_length() - 1
            workers.append(self._workers[number])
            bits ^= 1 << number
        return workers

    def column(self, ends: Ends, positions: Mapping[WorkerId, int]) -> NDArray[np.float64]:
        """Grains [positions]; 0 for who holds none. `positions`: the same object as long as they
        stay the same."""
        if self._positions is not positions or len(self._seats) > _MAX_SEATS:
            self._positions, self._seats = positions, {}
        grains, seats = array("d", bytes(8 * (len(positions) + 1))), self._seats
        for num, bits in ends:
            seated = seats.get(bits)
            if seated is None:
                workers = self.workers_of(bits)
                seated = seats[bits] = [positions.get(worker, -1) for worker in workers]
            for seat in seated:
                grains[seat] = num  # the last one is of those who have no position
        return np.frombuffer(grains)[:-1]

    def check(self, lost: int) -> None:
        """Every bit is somebody's, free, or among the lost."""
        bits = sorted([*self._bits.values(), *self._free, *bits_of(lost)])
        assert bits == [1 << n for n in range(len(self._workers))], "a bit lost or doubled"
        assert all(self.workers_of(bit) == [worker] for worker, bit in self._bits.items())

    def _take_bit(self, worker: WorkerId) -> int:
        if self._free:
            bit = self._free.pop()
        else:
            bit = 1 << len(self._workers)
            self._workers.append(worker)
        self._bits[worker], self._workers[bit.bit_length() - 1] = bit, worker
        self._change()
        return bit

    def _change(self) -> None:
        self.version += 1
        self._positions = None


def bits_of(mask: int) -> list[int]:
    bits = []
    while mask:
        low = mask & -mask
        bits.append(low)
        mask ^= low
    return bits
