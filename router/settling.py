"""Tells when what is looked at now and then, a file say, is new and no longer being written."""

from typing import Generic, TypeVar

SeenT = TypeVar("SeenT")


class Settling(Generic[SeenT]):
    """What two looks do not find the same is not believed; what was dealt with is not news."""

    __slots__ = ("_glimpsed", "_settled")

    def __init__(self, seen: SeenT) -> None:
        """`seen` is dealt with."""
        self._settled: SeenT | None = seen
        self._glimpsed = seen

    def is_news(self, seen: SeenT) -> bool:
        """Takes in what a look found. It is news once."""
        is_stable, self._glimpsed = seen == self._glimpsed, seen
        if not is_stable or seen == self._settled:
            return False
        self._settled = seen
        return True

    def again(self) -> None:
        """Makes what was news last news again: it could not be dealt with."""
        self._settled = None
