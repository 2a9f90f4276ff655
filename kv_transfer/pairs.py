"""Picks the transport that joins us and another worker: the fastest that both have and that works.

The receiver of a hand-over chooses, and says so in the grant: the writer uses that one or none,
because what the receiver can revoke depends on it.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cluster.errors import ConfigError, TransferFailed
from cluster.lateness import Patience
from cluster.types import Incarnation, WorkerAddress
from kv_transfer.pool import KvPool
from kv_transfer.stats import PairStats
from kv_transfer.transport import Peer, Transport

CONNECT_S = 5.0  # one transport's attempt
REFUSAL_S = 0.5  # for so long a peer that no transport reached is not tried again


_Way = tuple[Incarnation, str]  # to a peer by a transport


class _Refusal(NamedTuple):
    until: float  # monotonic
    reason: str


class Pairs:
    """Owns a worker's pool and its transports, and knows its peers."""

    def __init__(
        self, pool: KvPool, transports: Sequence[Transport], *, required: str | None = None
    ) -> None:
        """`transports` in order of preference; `required` allows no other than this one.

        Raises ConfigError where the required one is not there.
        """
        self.pool = pool
        self.stats = PairStats()
        self._transports = {transport.name: transport for transport in transports}
        if required is not None and required not in self._transports:
            raise ConfigError(
                f"'require_transport' is '{required}', which is not among 'transports': "
                f"{', '.join(self._transports)}."
            )
        self._required = required
        self._peers: dict[Incarnation, dict[str, Peer]] = {}
        self._connecting: dict[_Way, asyncio.Task[Peer]] = {}
        self._distrusted: dict[Incarnation, dict[str, str]] = {}  # by transport: why
        self._refusals: dict[tuple[Incarnation, str | None], _Refusal] = {}

    @property
    def addresses(self) -> Mapping[str, str]:
        """Says by transport where peers reach our pool."""
        return {name: transport.address for name, transport in self._transports.items()}

    async def connect(self, worker: WorkerAddress, *, by: str | None = None) -> Peer:
        """The peer, by the best transport there is, or by this one only. What once connected
        is used while it lives.

        Raises TransferFailed where there is none, with the reason of each: at once, if none was
        found a moment ago.
        """
        names, reasons = self._names(worker.incarnation, by)
        for name in names:
            if (peer := self._live(worker.incarnation, name)) is not None:
                return peer
        refusal = self._refusals.get((worker.incarnation, by))
        if refusal is not None and time.monotonic() < refusal.until:
            raise TransferFailed(refusal.reason)
        for name in names:
            try:
                return await self._peer(worker, name)
            except TransferFailed as error:
                reasons.append(f"{name}: {error}")
        raise self._refused(worker, by, reasons)

    def distrust(self, peer: Peer, reason: str) -> bool:
        """Takes another transport from now on: what this should move does not arrive, though it is
        connected. False: there is no other, and all are trusted again."""
        distrusted = self._distrusted.setdefault(peer.incarnation, {})
        distrusted[peer.transport] = reason
        if self._required is None and distrusted.keys() != self._transports.keys():
            return True
        del self._distrusted[peer.incarnation]
        return False

    def is_connected(self, incarnation: Incarnation) -> bool:
        """KV may move between us and this life of a worker."""
        return any(not peer.life.is_over for peer in self._peers.get(incarnation, {}).values())

    def forget(self, incarnation: Incarnation, *, by_itself: bool = False) -> None:
        """This life of a worker is over, as others say, or as that worker says itself. Of others
        it is not believed where its process can be seen: one that is frozen, or was started twice,
        may write yet."""
        self._distrusted.pop(incarnation, None)
        for peer in list(self._peers.get(incarnation, {}).values()):
            if by_itself or not peer.life.is_watched:
                peer.life.end()
        if not self.is_connected(incarnation):
            self._peers.pop(incarnation, None)

    def close(self) -> None:
        self.close_transports()
        self.pool.close()

    def close_transports(self) -> None:
        """Nothing moves any more. The pool stays, for whose pairs come next."""
        for task in self._connecting.values():
            task.cancel()
        for transport in self._transports.values():
            transport.close()

    def _names(self, incarnation: Incarnation, by: str | None) -> tuple[Sequence[str], list[str]]:
        """The transports to try, and why not the others."""
        if by is not None and self._required not in (None, by):
            raise TransferFailed(f"'{by}' is asked for, but only '{self._required}' is allowed.")
        if (only := by or self._required) is not None:
            return (only,), []
        distrusted = self._distrusted.get(incarnation, {})
        trusted = [name for name in self._transports if name not in distrusted]
        return trusted, [f"{name}: {reason}" for name, reason in distrusted.items()]

    def _refused(
        self, worker: WorkerAddress, by: str | None, reasons: Sequence[str]
    ) -> TransferFailed:
        now = time.monotonic()
        reason = f"No transport reaches '{worker.worker_id}'. {' '.join(reasons)}"
        self._distrusted.pop(worker.incarnation, None)  # the next time all are tried anew
        self._refusals = {key: old for key, old in self._refusals.items() if now < old.until}
        self._refusals[worker.incarnation, by] = _Refusal(now + REFUSAL_S, reason)
        return TransferFailed(reason)

    def _live(self, incarnation: Incarnation, name: str) -> Peer | None:
        peer = self._peers.get(incarnation, {}).get(name)
        return None if peer is None or peer.life.is_over else peer

    async def _peer(self, worker: WorkerAddress, name: str) -> Peer:
        """Whoever waits may leave: the connection is made for whoever comes next."""
        key = (worker.incarnation, name)
        connecting = self._connecting.get(key)
        if connecting is None:
            connecting = asyncio.create_task(self._connect_in_time(worker, name))
            self._connecting[key] = connecting
            connecting.add_done_callback(lambda task: self._connected(key, task))
        return await asyncio.shield(connecting)

    def _connected(self, key: _Way, task: "asyncio.Task[Peer]") -> None:
        incarnation, name = key
        del self._connecting[key]
        if task.cancelled() or task.exception() is not None:
            return
        peer = task.result()
        self._peers.setdefault(incarnation, {})[name] = peer
        peer.life.on_end(lambda: self._ended(incarnation, name))

    def _ended(self, incarnation: Incarnation, name: str) -> None:
        peers = self._peers.get(incarnation, {})
        peers.pop(name, None)
        if not peers:
            self._peers.pop(incarnation, None)
            self._distrusted.pop(incarnation, None)

    async def _connect_in_time(self, worker: WorkerAddress, name: str) -> Peer:
        try:
            async with Patience(CONNECT_S):
                return await self._connect(worker, name)
        except TimeoutError:
            raise TransferFailed(f"it did not answer within {CONNECT_S:.0f} s.") from None

    async def _connect(self, worker: WorkerAddress, name: str) -> Peer:
        self.stats.introduce(worker.incarnation, worker.worker_id)
        transport, address = self._transports.get(name), worker.transports.get(name)
        if transport is None or address is None:
            side = "we have" if transport is None else f"'{worker.worker_id}' has"
            raise TransferFailed(f"{side} no transport '{name}'.")
        peer = await transport.connect(address)
        if peer.incarnation != worker.incarnation:
            raise TransferFailed(
                f"Behind {name} is '{peer.incarnation}', not '{worker.incarnation}'."
            )
        return peer
