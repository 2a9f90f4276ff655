"""The other workers as this one knows and reaches them: of each life its facts, a gRPC channel and
a KV peer."""

import asyncio
from collections.abc import Sequence, Set

from cluster.authority import Credentials
from cluster.channel import Channel, open_channel
from cluster.errors import FingerprintMismatch, UnknownPeer
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
        self.me = me  # once it is a member, as all know it
        self._token = token
        self._credentials = credentials
        self._tasks = tasks
        self._channels: dict[Incarnation, Channel] = {}
        # Who is a member, has been heard from, or may still move KV.
        self._lives: dict[WorkerId, dict[Incarnation, WorkerAddress]] = {}

    def named(self, worker: str, incarnation: str) -> WorkerAddress:
        """Gives the facts of this life of a worker. Raises UnknownPeer where nobody told them:
        it has joined or begun anew just now, or is over."""
        life = self._lives.get(WorkerId(worker), {}).get(Incarnation(incarnation))
        if life is None:
            raise UnknownPeer(f"'{worker}' is not known here as '{incarnation}'.")
        return life

    async def connect(self, worker: WorkerAddress, *, by: str | None = None) -> Peer:
        """The KV peer, by the best transport there is, or by this one only.

        Raises FingerprintMismatch where no KV can be exchanged, TransferFailed where no
        transport reaches it.
        """
        diff = kv_mismatch(self.me.fingerprint, worker.fingerprint)
        if diff:
            raise FingerprintMismatch(
                f"'{self.me.worker_id}' and '{worker.worker_id}' cannot exchange KV: they differ "
                f"in {'; '.join(diff)}."
            )
        self._lives.setdefault(worker.worker_id, {}).setdefault(worker.incarnation, worker)
        return await self.pairs.connect(worker, by=by)

    def channel(self, worker: WorkerAddress) -> Channel:
        """Gives the channel to this life of the worker; dialled when first used."""
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
        """Takes in who is there, and drops what is over. A newer life of a worker proves that those
        before it are, unless they are seen to live: whoever starts it again has seen it die, or it
        has ended them itself. Lives that are no members are kept while KV may still move: a router
        that starts again knows of nobody at first."""
        for member in members:
            worker = member.worker
            lives = self._lives.setdefault(worker.worker_id, {})
            for incarnation in [one for one in lives if one < worker.incarnation]:
                self.pairs.forget(incarnation, by_itself=incarnation in member.past_lives)
                if not self.pairs.is_connected(incarnation):
                    del lives[incarnation]
                    self._drop(incarnation)
            lives[worker.incarnation] = worker
        self._keep({member.worker.incarnation for member in members})

    def _keep(self, members: Set[Incarnation]) -> None:
        for worker, lives in list(self._lives.items()):
            for incarnation in lives.keys() - members:
                if not self.pairs.is_connected(incarnation):
                    del lives[incarnation]
            if not lives:
                del self._lives[worker]
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
