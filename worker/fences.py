"""Fences blocks whose writer is not waited for any more: it is asked to say that it will not write
again."""

import asyncio
import contextlib
import logging

from cluster.channel import Channel
from cluster.errors import PenstockError
from cluster.types import Incarnation
from kv_transfer.incoming import Reservation
from penstock.v1 import worker_pb2 as pb
from worker.peers import Peers

logger = logging.getLogger(__name__)
_FENCE_S = 5.0
_RETRY_S = 1.0


class Fences:
    """Owns one task for each reservation that was abandoned and not closed."""

    def __init__(self, me: Incarnation, peers: Peers, tasks: asyncio.TaskGroup) -> None:
        self._me = me
        self._peers = peers
        self._tasks = tasks
        self._open: set[asyncio.Task[None]] = set()

    def ask(self, reservation: Reservation) -> None:
        """Asks until the writer answers or its process is dead, which the table itself learns."""
        task = self._tasks.create_task(self._ask(reservation))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    def close(self) -> None:
        """The process ends: what is still quarantined goes with it."""
        for task in self._open:
            task.cancel()

    async def _ask(self, reservation: Reservation) -> None:
        peer = reservation.peer
        while not reservation.transfer.is_over:
            channel = self._peers.known_channel(peer.incarnation)
            if channel is None:
                return  # that life is over
            try:
                answered = await self._fence(channel, reservation.epoch)
            except PenstockError as error:
                logger.info("epoch %d is not fenced yet: %s", reservation.epoch, error)
                await _ends_within(reservation, _RETRY_S)
                continue
            if answered != peer.incarnation:
                return  # another process has the address: the writer is dead or dying
            reservation.writer_closed("it was fenced")

    async def _fence(self, channel: Channel, epoch: int) -> str:
        request = pb.FenceRequest(incarnation=self._me, epochs=[epoch])
        response: pb.FenceResponse = await channel.unary(
            "penstock.v1.Worker", "Fence", request, timeout_s=_FENCE_S, wait_for_ready=True
        )
        return response.incarnation


async def _ends_within(reservation: Reservation, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await reservation.peer.life.wait()
