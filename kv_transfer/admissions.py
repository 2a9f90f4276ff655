"""Which writes may land in our pool now: for transports whose receiving end takes part.

This is what makes their `revoke` true: bytes land only under the same lock.
"""

import threading
from collections.abc import Callable

from kv_transfer.layout import Spans


class Admissions:
    """The epochs in which one writer may write, and where. From any thread."""

    __slots__ = ("_admitted", "_lock")

    def __init__(self) -> None:
        self._admitted: dict[int, Callable[[Spans], bool]] = {}
        self._lock = threading.Lock()

    def admit(self, epoch: int, allows: Callable[[Spans], bool]) -> None:
        with self._lock:
            self._admitted[epoch] = allows

    def revoke(self, epoch: int) -> None:
        """Once it returns, nothing of the epoch lands any more."""
        with self._lock:
            self._admitted.pop(epoch, None)

    def allow(self, epoch: int, spans: Spans) -> bool:
        with self._lock:
            allows = self._admitted.get(epoch)
        return allows is not None and allows(spans)

    def land(self, epoch: int, copy: Callable[[], None]) -> bool:
        """Copies, unless the epoch was revoked meanwhile; `copy` must be short and wait for
        nobody, because `revoke` waits for it. Returns whether it did."""
        with self._lock:
            if epoch not in self._admitted:
                return False
            copy()
            return True
