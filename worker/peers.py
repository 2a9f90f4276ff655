"""The other workers as this one reaches them: a gRPC channel and a KV peer to each life."""

import asyncio
from collections.abc import Collection

from cluster.channel import Channel, open_channel
from cluster.errors import FingerprintMismatch
from cluster.fingerprint import mismatch
from cluster.types import Incarnation, WorkerAddress
from kv_transfer.pairs import Pairs
from kv_transfer.transport import Peer


class Peers:
    """Owns the channels; the pairs own the KV peers."""

    def __init__(
        self, me: WorkerAddress, token: str, pairs: Pairs, tasks: asyncio.TaskGroup
    ) -> None:
        """`tasks` outlives every request."""
        self.pairs = pairs
        self._me = me
        self._token = token
        self._tasks = tasks
        self._channels: dict[Incarnation, Channel] = {}

    async def connect(self, worker: WorkerAddress, *, by: str | None = None) -> Peer:
        """The KV peer, by the best transport there is, or by this one only.

        Raises FingerprintMismatch where no KV can be exchanged, TransferFailed where no
        transport reaches it.
        """
        diff = mismatch(self._me.fingerprint, worker.fingerprint)
        if diff:
            raise FingerprintMismatch(
                f"'{self._me.worker_id}' and '{worker.worker_id}' cannot exchange KV: they differ "
                f"in {'; '.join(diff)}."
            )
        return await self.pairs.connect(worker, by=by)

    def channel(self, worker: WorkerAddress) -> Channel:
        """To this life of the worker; dialled when first used."""
        channel = self._channels.get(worker.incarnation)
        if channel is None:
            channel = open_channel(worker.address, self._token)
            self._channels[worker.incarnation] = channel
        return channel

    def known_channel(self, incarnation: Incarnation) -> Channel | None:
        """None: nothing was ever said to it, or its life is over."""
        return self._channels.get(incarnation)

    def forget(self, incarnation: Incarnation) -> None:
        """This life of a worker is over, for certain: nothing of it writes here any more."""
        self.pairs.forget(incarnation)
        self._drop(incarnation)

    def keep(self, members: Collection[Incarnation]) -> None:
        """Drops channels to lives that are no members, unless KV may still move: a router that
        starts again knows of nobody at first."""
        for incarnation in list(self._channels):
            if incarnation not in members and not self.pairs.is_connected(incarnation):
                self._drop(incarnation)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _drop(self, incarnation: Incarnation) -> None:
        if (channel := self._channels.pop(incarnation, None)) is not None:
            self._tasks.create_task(channel.close())
