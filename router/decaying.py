"""Sums by name whose past counts less and less: half after a half-life."""

import math
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

_NOTHING = 1e-9


class DecayingSums(Generic[Key]):
    """Bounded: with too many names the least sum goes. Seconds are of one monotonic clock."""

    def __init__(self, half_life_s: float, max_keys: int) -> None:
        self._half_life_s = half_life_s
        self._max_keys = max_keys
        self._sums: dict[Key, tuple[float, float]] = {}  # -> sum, as of

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, key: Key, amount: float, now_s: float) -> None:
        self._sums[key] = (self.of(key, now_s) + amount, now_s)
        if len(self._sums) > self._max_keys:
            sums = self.all(now_s)
            self._sums.pop(min(sums.keys() - {key}, key=sums.__getitem__))

    def of(self, key: Key, now_s: float) -> float:
        amount, as_of_s = self._sums.get(key, (0.0, now_s))
        return amount * math.exp2((as_of_s - now_s) / self._half_life_s)

    def rate(self, key: Key, now_s: float) -> float:
        """A second, lately."""
        return self.of(key, now_s) * math.log(2.0) / self._half_life_s

    def all(self, now_s: float) -> dict[Key, float]:
        """Gives them all, and forgets what is almost nothing by now."""
        sums = {key: self.of(key, now_s) for key in self._sums}
        for key, amount in sums.items():
            if amount < _NOTHING:
                del self._sums[key]
        return {key: amount for key, amount in sums.items() if amount >= _NOTHING}

    def forget(self, key: Key) -> None:
        self._sums.pop(key, None)
