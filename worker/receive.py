"""The receiving side of one `Worker.Fetch` call, whatever is fetched."""

import asyncio
import contextlib
from collections.abc import Callable

from cluster.channel import Exchange
from cluster.errors import TransferFailed, WorkerLost
from cluster.lateness import Patience
from cluster.transfer_codec import grant_to_pb, written_from_pb
from cluster.types import Written
from kv_transfer.incoming import Reservation
from penstock.v1 import worker_pb2 as pb

Reserve = Callable[[int], Reservation | None]


async def receive(
    call: Exchange, start: pb.FetchStart, reserve: Reserve, *, lease_s: float
) -> Written | None:
    """Returns when the reserved blocks are filled and verified; None when nothing is reserved.

    `reserve` is told how many tokens the source has. Raises PenstockError or TimeoutError when it
    fails; the reservation's table has its blocks then.
    """
    async with call:
        await call.send(pb.FetchRequest(start=start))
        found = await _next(call, lease_s)
        if found.WhichOneof("event") != "found":
            raise TransferFailed("The source did not say first what it has.")
        reservation = reserve(found.found.num_tokens) if found.found.num_tokens else None
        if reservation is None:
            return None
        with reservation:
            await call.send(pb.FetchRequest(grant=grant_to_pb(reservation.grant)))
            try:
                written = await _written(call, reservation, lease_s)
            except TimeoutError:
                reservation.lapse()
                raise
            await reservation.verify(written)
    return written


async def _written(call: Exchange, reservation: Reservation, lease_s: float) -> Written:
    try:
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(_renew(call, reservation.epoch, lease_s))
            while (message := await _next(call, lease_s)).WhichOneof("event") != "written":
                reservation.renew()
            renewing.cancel()
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return written_from_pb(message.written)


async def _renew(call: Exchange, epoch: int, lease_s: float) -> None:
    """Signs of life while the source may write. A call that ended takes no more: its last
    words, or their lack, are for who listens."""
    with contextlib.suppress(WorkerLost):
        while True:
            await asyncio.sleep(lease_s / 3)
            await call.send(pb.FetchRequest(renew=pb.Renew(epoch=epoch)))


async def _next(call: Exchange, lease_s: float) -> pb.FetchResponse:
    async with Patience(lease_s):
        message: pb.FetchResponse | None = await call.receive()
    if message is None:
        raise TransferFailed("The source ended a fetch half-way.")
    return message
