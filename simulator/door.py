"""The router's event loop, as far as it holds up requests: one after another, as they came. Knows
nothing of placing.
"""

from collections.abc import Callable

from simulator.agenda import Agenda


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
