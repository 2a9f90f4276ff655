"""A lane before what few can use at once: who waits there, how much, and who is next.

Knows no thread, no process and no text: its owner enters, works, and leaves.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.errors import Overloaded

# So long the largest lets smaller ones pass that came later.
MAX_PASSED_S = 30.0
_S_PER_BYTE = 4e-7  # to tokenise: when who is refused may come again


@dataclass(frozen=True, slots=True, order=True)
class _Turn:
    due: float
    number: int
    num_bytes: int = field(compare=False)
    begun: "asyncio.Future[None]" = field(compare=False)


class Lane:
    """Small work goes before large: work is due when it came, and later by its size. So nobody
    waits behind what is much larger, and the largest is passed for `MAX_PASSED_S` at most."""

    def __init__(
        self,
        *,
        num_places: int,
        max_waiting: int,
        max_waiting_bytes: int,
        largest_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_free = num_places
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._s_per_byte = MAX_PASSED_S / largest_bytes
        self._clock = clock
        self._numbers = itertools.count()
        self._waiting: list[_Turn] = []
        self.num_waiting_bytes = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def enter(self, num_bytes: int) -> None:
        """Returns when there is a place. Raises Overloaded, at once, where too much waits."""
        if self._num_free:
            self._num_free -= 1
            return
        self.check_room(num_bytes)
        due = self._clock() + min(MAX_PASSED_S, num_bytes * self._s_per_byte)
        begun = asyncio.get_running_loop().create_future()
        turn = _Turn(due, next(self._numbers), num_bytes, begun)
        heapq.heappush(self._waiting, turn)
        self.num_waiting_bytes += num_bytes
        try:
            await begun
        except asyncio.CancelledError:
            if begun.cancelled():
                self._withdraw(turn)
            else:  # its turn had come as well
                self.leave()
            raise

    def leave(self) -> None:
        """Gives a place back, to whoever is next."""
        while self._waiting:
            turn = heapq.heappop(self._waiting)
            self.num_waiting_bytes -= turn.num_bytes
            if not turn.begun.done():
                turn.begun.set_result(None)
                return
        self._num_free += 1

    def _withdraw(self, turn: _Turn) -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
            heapq.heapify(self._waiting)
            self.num_waiting_bytes -= turn.num_bytes

    def check_room(self, num_bytes: int) -> None:
        """Raises Overloaded where so much could not even wait."""
        after_s = max(1.0, self.num_waiting_bytes * _S_PER_BYTE)
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(
                f"{self._max_waiting} prompts wait to be tokenised, and no more are taken on.",
                retry_after_s=after_s,
            )
        if self.num_waiting_bytes + num_bytes > self._max_waiting_bytes:
            raise Overloaded(
                f"Prompts of {self.num_waiting_bytes} bytes wait to be tokenised, at most "
                f"{self._max_waiting_bytes} may: try again later, or send smaller ones.",
                retry_after_s=after_s,
            )
