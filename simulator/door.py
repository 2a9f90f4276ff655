"""The router's event loop, as far as it holds up requests: all that have come share it evenly, as
their many small turns do. Knows nothing of placing.
"""

from collections import deque
from collections.abc import Callable

from simulator.agenda import Action, Agenda


class Door:
    """Each request takes `work_s` of it: alone so long, among n up to n times so long. Who came
    first is through first."""

    def __init__(self, agenda: Agenda, work_s: float) -> None:
        self._agenda = agenda
        self._work_s = work_s
        self._inside: deque[tuple[float, Action]] = deque()  # served when it is through
        self._served_s = 0.0  # of each that is inside all the time
        self._as_of_s = 0.0
        self._entry: int | None = None

    def enter(self, through: Callable[[], None]) -> None:
        """Calls `through` when the request is; at once where that is no work."""
        if not self._work_s:
            through()
            return
        self._serve()
        self._inside.append((self._served_s + self._work_s, through))
        self._await_next()

    def _serve(self) -> None:
        """Until now."""
        now_s = self._agenda.now_s
        if self._inside:
            self._served_s += (now_s - self._as_of_s) / len(self._inside)
        self._as_of_s = now_s

    def _await_next(self) -> None:
        if self._entry is not None:
            self._agenda.cancel(self._entry)
            self._entry = None
        if self._inside:
            left_s = max(0.0, self._inside[0][0] - self._served_s) * len(self._inside)
            self._entry = self._agenda.after(left_s, self._let_through)

    def _let_through(self) -> None:
        self._entry = None
        self._serve()
        _, through = self._inside.popleft()
        self._await_next()
        through()
