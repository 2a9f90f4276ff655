"""Hysteresis that cannot oscillate: how many there are of something changes its direction no sooner
than a while after it last did, whatever anybody wants.

Three things have a direction: either pool, and both together.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import Final, NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Follows which way one number went last, and when it turned."""

    sign: int = 0  # of its last change
    reversed_at: float = -inf

    def allows(self, change: int, now_s: float, hold_s: float) -> bool:
        return change * self.sign >= 0 or now_s >= self.reversed_at + hold_s

    def after(self, change: int, now_s: float) -> "Trend":
        sign = (change > 0) - (change < 0)
        if not sign:
            return self
        reversed_at = now_s if sign == -self.sign else self.reversed_at
        return Trend(sign=sign, reversed_at=reversed_at)


NO_DIRECTION: Final = Trend()


class Counts(NamedTuple):
    prefill: int
    decode: int

    def __str__(self) -> str:
        return f"{self.prefill}+{self.decode}"

    @property
    def num(self) -> int:
        return self.prefill + self.decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Directions:
    prefill: Trend = NO_DIRECTION
    decode: Trend = NO_DIRECTION
    both: Trend = NO_DIRECTION

    def clip(self, now: Counts, wanted: Counts, now_s: float, hold_s: float) -> Counts:
        """Gives as much of what is wanted as may be done now: never fewer in all than is wanted,
        because a part that had to be left out would have grown."""
        prefill, decode = wanted.prefill - now.prefill, wanted.decode - now.decode
        least = min(0, prefill + decode)
        if not self.prefill.allows(prefill, now_s, hold_s):
            prefill = 0
        if not self.decode.allows(decode, now_s, hold_s):
            decode = 0
        if prefill + decode < least:
            prefill, decode = max(prefill, 0), max(decode, 0)
        if not self.both.allows(prefill + decode, now_s, hold_s):
            prefill, decode = _balanced(prefill, decode)
        return Counts(now.prefill + prefill, now.decode + decode)

    def after(self, now: Counts, then: Counts, now_s: float) -> "Directions":
        return replace(
            self,
            prefill=self.prefill.after(then.prefill - now.prefill, now_s),
            decode=self.decode.after(then.decode - now.decode, now_s),
            both=self.both.after(then.num - now.num, now_s),
        )


NO_DIRECTIONS: Final = Directions()


def _balanced(prefill: int, decode: int) -> tuple[int, int]:
    """Gives what is left of a change where both together must stay as many."""
    if prefill * decode >= 0:
        return 0, 0
    num = min(abs(prefill), abs(decode))
    return (num, -num) if prefill > 0 else (-num, num)
