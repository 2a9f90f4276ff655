"""Workers that a planner starts because somebody waits for them: with none there, requests wait.

It is the planner's word, and lapses unless it is given again: without a planner a request is
refused at once, as nobody would come.
"""

from dataclasses import dataclass
from math import inf


@dataclass(slots=True, eq=False)
class ColdStart:
    """Times are of the router's monotonic clock."""

    _start_s: float = 0.0
    _until: float = -inf

    def promise(self, start_s: float, until: float) -> None:
        """Until then who waits may be served so much later."""
        self._start_s, self._until = start_s, until

    def wait_s(self, now: float) -> float:
        """How long a request may wait for a worker that is started for it; 0: nobody starts one."""
        return self._start_s if now < self._until else 0.0
