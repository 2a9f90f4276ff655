"""Counts what was taken lately, in two numbers: a window that slides, taken to have been filled
evenly while it was the present one. Off by a few per cent at most, and never for long.
"""

from typing import NamedTuple


class Taken(NamedTuple):
    """What is counted under one key at one moment."""

    before: int  # in the whole window before this one
    now: int  # in this one, until now
    elapsed_s: float  # of this one

    def wait_s(self, amount: int, most: int, window_s: float) -> float:
        """Says how long until so much more fits, if nothing else is taken; 0.0: it does."""
        room = most - amount
        if room < 0:
            return window_s  # never: its asker is to know better
        if self.now > room:  # only once this window is the one before
            return window_s - self.elapsed_s + window_s * (1 - room / self.now)
        if self.before <= room - self.now:
            return 0.0
        due_s = window_s * (1 - (room - self.now) / self.before)
        return max(0.0, due_s - self.elapsed_s)
