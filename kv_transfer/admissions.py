"""Leave to write into our pool, given to one peer for one epoch, and taken back for certain: for
transports whose receiving end takes part. Bytes land only under the lock that revoking takes.
"""

import threading
from collections.abc import Callable

from cluster.types import Incarnation
from kv_transfer.geometry import Spans


class LandingAdmission:
    """Has a lock of its own, so that `revoke` waits for one receive of this epoch at most, and
    never for another peer's."""

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


class Admissions:
    """All of one pool. Found by its transport's threads, changed entry by entry by others."""

    __slots__ = ("_by_epoch",)

    def __init__(self) -> None:
        # by writer, epoch of ours
        self._by_epoch: dict[tuple[Incarnation, int], LandingAdmission] = {}

    def admit(self, writer: Incarnation, epoch: int, allows: Callable[[Spans], bool]) -> None:
        self.revoke(writer, epoch)
        self._by_epoch[writer, epoch] = LandingAdmission(allows)

    def find(self, writer: Incarnation, epoch: int) -> LandingAdmission | None:
        return self._by_epoch.get((writer, epoch))

    def revoke(self, writer: Incarnation, epoch: int) -> None:
        """Once it returns, nothing of the epoch lands any more."""
        if (admission := self._by_epoch.pop((writer, epoch), None)) is not None:
            admission.revoke()

    def revoke_all(self, writer: Incarnation) -> None:
        for one, epoch in list(self._by_epoch):
            if one == writer:
                self.revoke(writer, epoch)
