"""Which transport joins us and another worker: the fastest that both have and that works.

The receiver of a hand-over chooses, and says so in the grant: the writer uses that one or none,
because what the receiver can revoke depends on it.
"""

import asyncio
from collections.abc import Mapping, Sequence

from cluster.errors import ConfigError, TransferFailed
from cluster.types import Incarnation, WorkerAddress
from kv_transfer.pair_stats import PairStats
from kv_transfer.pool import Pool
from kv_transfer.transport import Peer, Transport


class Pairs:
    """Owns a worker's pool and its transports, and knows its peers."""

    def __init__(
        self, pool: Pool, transports: Sequence[Transport], *, required: str | None = None
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
        self._connecting: dict[tuple[Incarnation, str], asyncio.Lock] = {}

    @property
    def addresses(self) -> Mapping[str, str]:
        """By transport: where peers reach our pool."""
        return {name: transport.address for name, transport in self._transports.items()}

    async def connect(self, worker: WorkerAddress, *, by: str | None = None) -> Peer:
        """The peer, by the best transport there is, or by this one only.

        Raises TransferFailed where there is none, with the reason of each.
        """
        if (by := by or self._required) is not None:
            return await self._peer(worker, by)
        reasons = []
        for name in self._transports:
            try:
                return await self._peer(worker, name)
            except TransferFailed as error:
                reasons.append(f"{name}: {error}")
        raise TransferFailed(f"No transport reaches '{worker.worker_id}'. {' '.join(reasons)}")

    def forget(self, incarnation: Incarnation) -> None:
        """This life of a worker is over."""
        for peer in self._peers.pop(incarnation, {}).values():
            if not peer.life.is_over:
                peer.life.end()

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()
        self.pool.close()

    async def _peer(self, worker: WorkerAddress, name: str) -> Peer:
        incarnation = worker.incarnation
        peer = self._peers.get(incarnation, {}).get(name)
        if peer is not None and not peer.life.is_over:
            return peer
        lock = self._connecting.setdefault((incarnation, name), asyncio.Lock())
        async with lock:
            peer = self._peers.get(incarnation, {}).get(name)
            if peer is None or peer.life.is_over:
                peer = await self._connect(worker, name)
                self._peers.setdefault(incarnation, {})[name] = peer
        self._connecting.pop((incarnation, name), None)
        return peer

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
