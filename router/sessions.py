"""Knows which worker decoded for a session last. Bounded and forgetful; knows no request."""

from collections import OrderedDict
from hashlib import blake2b
from typing import NamedTuple

from cluster.types import WorkerId
from router.policy_settings import SessionAffinity

SessionId = bytes  # 16 bytes: keys are the clients', and may be long


class _Seen(NamedTuple):
    worker: WorkerId
    at_s: float


class Sessions:
    """Least recently used first. What is too much or too old is dropped by the way."""

    def __init__(self) -> None:
        self._seen: OrderedDict[SessionId, _Seen] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def worker(
        self, session: SessionId | None, now_s: float, affinity: SessionAffinity | None
    ) -> WorkerId | None:
        """None: nobody that counts any more."""
        if session is None or affinity is None:
            return None
        seen = self._seen.get(session)
        return seen.worker if seen and now_s < seen.at_s + affinity.ttl_s else None

    def remember(
        self,
        session: SessionId | None,
        worker: WorkerId,
        now_s: float,
        affinity: SessionAffinity | None,
    ) -> None:
        if session is None or affinity is None:
            return
        self._seen[session] = _Seen(worker, now_s)
        self._seen.move_to_end(session)
        while self._seen:
            oldest = next(iter(self._seen.values()))
            if len(self._seen) <= affinity.max_sessions and now_s < oldest.at_s + affinity.ttl_s:
                return
            self._seen.popitem(last=False)


def session_id(tenant: str, key: str) -> SessionId | None:
    """None: the request belongs to no session. Tenants do not share sessions."""
    return blake2b(f"{tenant}\0{key}".encode(), digest_size=16).digest() if key else None
