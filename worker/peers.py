"""The other workers as this one reaches them: a gRPC channel and a KV peer to each life."""

import asyncio
from collections.abc import Collection, Sequence

from cluster.authority import Credentials
from cluster.channel import Channel, open_channel
from cluster.errors import FingerprintMismatch
from cluster.fingerprint import kv_mismatch
from cluster.proof import audience_of
from cluster.types import Incarnation, Member, WorkerAddress, WorkerId
from kv_transfer.pairs import Pairs
from kv_transfer.transport import Peer


class Peers:
    """Owns the channels; the pairs own the KV peers."""

    def __init__(
        self,
        me: WorkerAddress,
        token: str,
        credentials: Credentials,
        pairs: Pairs,
        tasks: asyncio.TaskGroup,
    ) -> None:
        """`tasks` outlives every request."""
        self.pairs = pairs
        self._me = me
        self._token = token
        self._credentials = credentials
        self._tasks = tasks
        self._channels: dict[Incarnation, Channel] = {}
        self._met: dict[WorkerId, set[Incarnation]] = {}

    async def connect(self, worker: WorkerAddress, *, by: str | None = None) -> Peer:
        """The KV peer, by the best transport there is, or by this one only.

        Raises FingerprintMismatch where no KV can be exchanged, TransferFailed where no
        transport reaches it.
        """
        self._met.setdefault(worker.worker_id, set()).add(worker.incarnation)
        diff = kv_mismatch(self._me.fingerprint, worker.fingerprint)
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
            channel = open_channel(
                worker.address, self._token, audience_of(worker), credentials=self._credentials
            )
            self._channels[worker.incarnation] = channel
        return channel

    def known_channel(self, incarnation: Incarnation) -> Channel | None:
        """None: nothing was ever said to it, or its life is over."""
        return self._channels.get(incarnation)

    def update(self, members: Sequence[Member]) -> None:
        """Drops what is over. A newer life of a worker proves that those before it are, unless
        they are seen to live: whoever starts it again has seen it die, or it has ended them
        itself. Lives that are no members are kept while KV may still move: a router that starts
        again knows of nobody at first."""
        for member in members:
            worker = member.worker
            met = self._met.get(worker.worker_id, set())
            for incarnation in [one for one in met if one < worker.incarnation]:
                self.pairs.forget(incarnation, by_itself=incarnation in member.past_lives)
                if not self.pairs.is_connected(incarnation):
                    met.discard(incarnation)
                    self._drop(incarnation)
        self._keep({member.worker.incarnation for member in members})

    def _keep(self, members: Collection[Incarnation]) -> None:
        for worker, met in list(self._met.items()):
            met &= {one for one in met if one in members or self.pairs.is_connected(one)}
            if not met:
                del self._met[worker]
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
