"""Leave to write, given to one peer for one epoch, and taken back for certain."""

import threading
from collections.abc import Callable

from cluster.types import Incarnation
from kv_transfer.layout import Spans

EpochOf = tuple[Incarnation, int]  # the writer's incarnation, our pool's epoch


class Admission:
    """Receives happen under a lock of this epoch alone, so that `revoke` waits for one receive of
    it at most, and never for another peer's."""

    __slots__ = ("_allows", "_is_revoked", "_lock")

    def __init__(self, allows: Callable[[Spans], bool]) -> None:
        self._allows = allows
        self._is_revoked = False
        self._lock = threading.Lock()

    def allows(self, spans: Spans) -> bool:
        return not self._is_revoked and self._allows(spans)

    def land(self, receive: Callable[[], None]) -> bool:
        """Receives some bytes, unless it is revoked; `receive` waits for nobody."""
        with self._lock:
            if self._is_revoked:
                return False
            receive()
            return True

    def revoke(self) -> None:
        """Once it returns, nothing lands any more."""
        self._is_revoked = True  # first: no further receive overtakes us at the lock
        with self._lock:
            pass
