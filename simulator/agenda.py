"""Virtual time: what happens when, and in which order at one instant. Knows nobody on it."""

import heapq
from collections.abc import Callable

Action = Callable[[], None]

# At one instant: first the ends of steps, by worker; then what was sent, as it was put down;
# then idle engines look for work. So the order does not depend on how far ahead a step was
# put down.
MESSAGE = 1 << 30
WAKE = MESSAGE + 1


class Agenda:
    """A heap of actions. `run` is the only clock there is."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._entries: list[tuple[float, int, int, Action]] = []
        self._num_put = 0
        self._cancelled: set[int] = set()

    def at(self, time_s: float, action: Action, rank: int = MESSAGE) -> int:
        """Puts an action down; returns what `cancel` takes."""
        self._num_put += 1
        heapq.heappush(self._entries, (max(time_s, self.now_s), rank, self._num_put, action))
        return self._num_put

    def after(self, seconds: float, action: Action) -> int:
        return self.at(self.now_s + seconds, action)

    def cancel(self, entry: int) -> None:
        """Cancels an entry that has not had its turn."""
        self._cancelled.add(entry)

    def step(self) -> bool:
        """Takes the next entry; False when there is none."""
        if not self._entries:
            return False
        self.now_s, _, number, action = heapq.heappop(self._entries)
        if number in self._cancelled:
            self._cancelled.remove(number)
        else:
            action()
        return True


class Door:
    """Each request takes `work_s` of it."""

    def __init__(self, agenda: Agenda, work_s: float) -> None:
        self._agenda = agenda
        self._work_s = work_s
        self._free_s = 0.0  # when all that have come are through

    def enter(self, through: Callable[[], None]) -> None:
        """Calls `through` when the request is; at once where that is no work."""
        if not self._work_s:
            through()
            return
        self._free_s = max(self._free_s, self._agenda.now_s) + self._work_s
        self._agenda.at(self._free_s, through)
