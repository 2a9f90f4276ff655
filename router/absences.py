"""Workers that went without saying goodbye, and whether they will be back. Pure: time comes in as
an argument, in seconds of the router's monotonic clock.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from statistics import median
from typing import Final, NamedTuple

from cluster.types import Incarnation, Role, WorkerId

CRASH_LOOP_DEATHS: Final = 3
CRASH_LOOP_S: Final = 60.0
_NUM_RETURNS: Final = 16  # the latest of them tell how long the next one takes
_MAX_KNOWN: Final = 1024  # workers, however many names were ever used


class Absence(NamedTuple):
    """A worker that is away."""

    worker: WorkerId
    role: Role
    incarnation: Incarnation  # of the life that was heard last
    since: float


@dataclass(slots=True, eq=False)
class Absences:
    """Knows who is away, since when, and how often each died lately."""

    return_s: float = 30.0  # so long a worker is expected back
    _away: dict[WorkerId, Absence] = field(default_factory=dict)
    _deaths: dict[WorkerId, deque[Absence]] = field(default_factory=dict)
    _returns_s: deque[float] = field(default_factory=lambda: deque(maxlen=_NUM_RETURNS))

    def left(self, worker: WorkerId, role: Role, incarnation: Incarnation, now: float) -> None:
        """Takes it that a life of a worker is over, until it is heard again."""
        known = self._away.get(worker)
        if known is not None and known.incarnation == incarnation:
            return
        absence = Absence(worker, role, incarnation, now)
        self._away[worker] = absence
        deaths = self._deaths.setdefault(worker, deque(maxlen=CRASH_LOOP_DEATHS))
        if not deaths or deaths[-1].incarnation != incarnation:
            deaths.append(absence)
        if len(self._deaths) > _MAX_KNOWN:
            self._forget(next(iter(self._deaths)))

    def heard(self, worker: WorkerId, incarnation: Incarnation, now: float) -> None:
        """Ends its absence. Of the same life only the connection was lost: that was no death."""
        absence = self._away.pop(worker, None)
        if absence is None:
            return
        if absence.incarnation == incarnation:
            self._deaths[worker].pop()
        else:
            self._returns_s.append(now - absence.since)

    def said_goodbye(self, worker: WorkerId) -> None:
        """It left as it was told to: nobody waits for it."""
        self._away.pop(worker, None)

    def num_deaths(self, worker: WorkerId, now: float) -> int:
        """Counts deaths in the last minute."""
        deaths = self._deaths.get(worker, ())
        return sum(now - death.since < CRASH_LOOP_S for death in deaths)

    def is_crash_looping(self, worker: WorkerId, now: float) -> bool:
        return self.num_deaths(worker, now) >= CRASH_LOOP_DEATHS

    def is_expected(self, absence: Absence, now: float) -> bool:
        is_late = now - absence.since >= self.return_s
        return not is_late and not self.is_crash_looping(absence.worker, now)

    def expected(self, role: Role, now: float) -> Iterator[Absence]:
        """Gives the absent of a role that will be back."""
        for absence in self._away.values():
            if absence.role is role and self.is_expected(absence, now):
                yield absence

    def away(self, now: float) -> list[Absence]:
        """All who are missed, those long gone left out."""
        return [each for each in self._away.values() if now - each.since < CRASH_LOOP_S]

    def return_in_s(self, role: Role, now: float) -> float | None:
        """Predicted seconds until the first of a role is back, as long as the latest took in the
        median. None: nobody is expected, or it is not known yet."""
        since = min((absence.since for absence in self.expected(role, now)), default=None)
        if since is None or not self._returns_s:
            return None
        return max(0.0, since + median(self._returns_s) - now)

    def _forget(self, worker: WorkerId) -> None:
        self._deaths.pop(worker, None)
        self._away.pop(worker, None)


@dataclass(slots=True, eq=False)
class ColdStart:
    """Times are of the router's monotonic clock."""

    _start_s: float = 0.0
    _until: float = -inf

    def promise(self, start_s: float, until: float) -> None:
        """Promises that until then who waits may be served so much later."""
        self._start_s, self._until = start_s, until

    def wait_s(self, now: float) -> float:
        """Says how long a request may wait for a worker to start for it; 0: nobody starts one."""
        return self._start_s if now < self._until else 0.0
