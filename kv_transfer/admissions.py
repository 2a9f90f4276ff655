"""Which writes may land in our pool now: for transports whose receiving end takes part.

This is what makes their `revoke` true: bytes land only under the same lock.
"""

import threading
from collections.abc import Callable

from cluster.types import Incarnation
from kv_transfer.layout import Spans

_Epoch = tuple[Incarnation, int]  # of the writer, of our pool


class Admissions:
    """The epochs in which each writer may write, and where. From any thread."""

    __slots__ = ("_admitted", "_lock")

    def __init__(self) -> None:
        self._admitted: dict[_Epoch, Callable[[Spans], bool]] = {}
        self._lock = threading.Lock()

    def admit(self, writer: Incarnation, epoch: int, allows: Callable[[Spans], bool]) -> None:
        with self._lock:
            self._admitted[writer, epoch] = allows

    def revoke(self, writer: Incarnation, epoch: int) -> None:
        """Once it returns, nothing of the epoch lands any more."""
        with self._lock:
            self._admitted.pop((writer, epoch), None)

    def allow(self, writer: Incarnation, epoch: int, spans: Spans) -> bool:
        with self._lock:
            allows = self._admitted.get((writer, epoch))
        return allows is not None and allows(spans)

    def land(self, writer: Incarnation, epoch: int, copy: Callable[[], None]) -> bool:
        """Copies, unless the epoch was revoked meanwhile; `copy` must be short and wait for
        nobody, because `revoke` waits for it. Returns whether it did."""
        with self._lock:
            if (writer, epoch) not in self._admitted:
                return False
            copy()
            return True
