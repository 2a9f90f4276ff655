"""Measures how much of what is old in a cache is still found again: what an eviction costs.

The older half of what nobody uses is what goes next. Of all that got there, some is found again
and some is evicted; the share that is found is what evicting the next one loses. A cache that
turns over faster than its content comes again finds nothing old, and loses nothing.
"""

_OLD_SHARE = 0.5  # of what is cached: the least recently used half
_NEAR_SHARE = 0.125  # used again so soon, something passes hardly anybody


class TailReuse:
    """Follows one least-recently-used cache. Forgets as the cache turns over."""

    __slots__ = ("_capacity", "_num_evicted", "_num_found", "age")

    def __init__(self, capacity: int) -> None:
        self._capacity = max(1, capacity)
        # Of the cache: how many came to its front, those left out that were still near it.
        self.age = 0
        self._num_found = self._num_evicted = 0.0

    @property
    def share(self) -> float:
        """0 to 1; 0 as long as nothing was evicted."""
        return self._num_found / (self._num_found + self._num_evicted) if self._num_evicted else 0.0

    def found(self, since: int, num_cached: int) -> None:
        """Something last used at that age was asked for again, one of `num_cached`."""
        age = self.age - since
        self.age += age >= _NEAR_SHARE * num_cached
        if self._num_evicted and age >= _OLD_SHARE * num_cached:
            self._num_found += 1.0
            self._fade()

    def evicted(self) -> None:
        """Something new took its place."""
        self.age += 1
        self._num_evicted += 1.0
        self._fade()

    def _fade(self) -> None:
        if self._num_found + self._num_evicted >= self._capacity:
            self._num_found, self._num_evicted = self._num_found / 2.0, self._num_evicted / 2.0
