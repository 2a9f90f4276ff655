"""Writes into other workers' pools, and keeps what this worker has promised not to write."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cluster.errors import TransferFailed
from cluster.lateness import AttentiveClock
from cluster.rpc import Call
from cluster.types import Grant, WorkerAddress
from kv_transfer.outgoing import OutgoingTransfer
from penstock.v1 import worker_pb2 as pb
from worker.peers import Peers

_MAX_FENCED = 65_536


class _Epoch(NamedTuple):
    receiver: str  # its incarnation
    number: int


class Writes:
    """Owns the outgoing transfers of one worker, whatever they are for."""

    def __init__(
        self, me: WorkerAddress, peers: Peers, attention: AttentiveClock, *, digest: bool
    ) -> None:
        self._me = me
        self._peers = peers
        self._attention = attention
        self._digest = digest
        self._open: dict[OutgoingTransfer, _Epoch] = {}  # those that were granted
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._fenced: OrderedDict[_Epoch, None] = OrderedDict()

    def open(
        self,
        blocks: Sequence[int],
        num_tokens: int,
        *,
        whole_from: int,
        on_closed: Callable[[], None],
    ) -> OutgoingTransfer:
        """`blocks` must stay as they are until `on_closed`, which is called once; tokens before
        `whole_from` lie in thin ones."""

        def closed() -> None:
            self._open.pop(transfer, None)
            if not self._open:
                self._none_open.set()
            on_closed()

        transfer = OutgoingTransfer(
            layout=self._me.fingerprint.layout,
            blocks=blocks,
            num_tokens=num_tokens,
            whole_from=whole_from,
            digest=self._digest,
            stats=self._peers.pairs.stats,
            on_closed=closed,
        )
        return transfer

    async def grant(
        self, transfer: OutgoingTransfer, grant: Grant, receiver: WorkerAddress
    ) -> None:
        """Begins to write. Raises TransferFailed or FingerprintMismatch where it cannot, and
        where the receiver has given it up already."""
        epoch = _Epoch(grant.incarnation, grant.epoch)
        self._check_wanted(epoch)
        peer = await self._peers.connect(receiver, by=grant.transport)
        self._check_wanted(epoch)
        if transfer.is_closed:
            return  # while it connected
        self._open[transfer] = epoch
        self._none_open.clear()
        transfer.grant(grant, peer, receiver.fingerprint.layout)

    def _check_wanted(self, epoch: _Epoch) -> None:
        if epoch in self._fenced:
            raise TransferFailed("The receiver has given it up.")

    async def all_closed(self) -> None:
        """Returns when nothing that was granted to us is, or may be, still on its way."""
        await self._none_open.wait()

    def stand_still(self, transfer: OutgoingTransfer, limit_s: float) -> bool:
        """Tells whether it has writes in flight, and for this long nothing has landed at its
        receiver, of this transfer or of another: those before it may be what it waits for. What our
        own absence held up has as long again."""
        limit = time.monotonic() - limit_s
        if max(transfer.writing_since, self._attention.settled_at) > limit:
            return False
        receiver = self._open[transfer].receiver
        return all(
            one.landed_at < limit for one, epoch in self._open.items() if epoch.receiver == receiver
        )

    async def fence(self, request: pb.FenceRequest, call: Call) -> pb.FenceResponse:
        """`Worker.Fence`: answers when none of these epochs will be written any more."""
        epochs = {_Epoch(request.incarnation, number) for number in request.epochs}
        self._fenced.update(dict.fromkeys(epochs))
        while len(self._fenced) > _MAX_FENCED:
            self._fenced.popitem(last=False)
        for transfer in [one for one, epoch in self._open.items() if epoch in epochs]:
            transfer.stop("the receiver gave it up")
            await transfer.closed()
        return pb.FenceResponse(incarnation=self._me.incarnation)
