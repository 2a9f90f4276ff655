"""Serves `Worker.Fetch`: lends what is cached here to another worker, and writes it there.

The blocks are held until no write can read them any more, which the call does not wait for.
"""

import asyncio
from typing import Any

import numpy as np

from cluster.block_hash import HASH_BYTES
from cluster.codec import address_from_pb, hashes_from_bytes
from cluster.errors import Draining, InvalidRequest
from cluster.lateness import Patience
from cluster.open_calls import OpenCalls
from cluster.rpc import Call
from cluster.transfer_codec import grant_from_pb, written_to_pb
from cluster.types import BlockId, KvLayout, WorkerAddress
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.pool import Pool
from penstock.v1 import worker_pb2 as pb
from worker.scheduler import Scheduler
from worker.writes import Writes

MAX_PROBE_BYTES = 64 << 20
_PATTERNS = range(1, 64)  # bytes that are small numbers in every float format


class Source:
    def __init__(
        self,
        layout: KvLayout,
        memory: Pool,
        scheduler: Scheduler,
        writes: Writes,
        open_calls: OpenCalls,
        *,
        lease_s: float,
    ) -> None:
        self._layout = layout
        self._memory = memory
        self._pool = scheduler.batcher.pool
        self._scheduler = scheduler
        self._writes = writes
        self._open_calls = open_calls
        self._lease_s = lease_s
        self._num_probes = 0
        self.num_tokens = 0  # lent so far, without probes

    async def fetch(self, call: Call) -> None:
        """`Worker.Fetch`."""
        message = await call.receive()
        if message is None or message.WhichOneof("event") != "start":
            raise InvalidRequest("start", "A fetch begins with 'start'.")
        receiver = address_from_pb(message.start.receiver)
        if self._open_calls.is_draining:
            raise Draining("This worker is draining: fetch elsewhere, or compute.")
        with self._open_calls:
            blocks = self._lend(message.start)
            num_tokens = len(blocks) * self._layout.block_size
            transfer = self._writes.open(
                blocks,
                num_tokens,
                whole_from=self._pool.whole_from(blocks),
                on_closed=lambda: self._scheduler.release(blocks),
            )
            transfer.computed_all(num_tokens)
            try:
                await call.send(pb.FetchResponse(found=pb.Found(num_tokens=num_tokens)))
                if num_tokens:
                    await self._write(call, transfer, receiver)
            finally:
                transfer.stop("the call ended")

    def _lend(self, start: pb.FetchStart) -> list[BlockId]:
        """Blocks with a reference each."""
        match start.WhichOneof("what"):
            case "hashes":
                pool = self._pool
                most = pool.num_blocks * pool.block_size // pool.hash_grain
                hashes = hashes_from_bytes("hashes", start.hashes[: HASH_BYTES * most])
                blocks = pool.match(hashes, len(hashes) * pool.hash_grain)
                pool.hold(blocks)
                self.num_tokens += len(blocks) * self._layout.block_size
                return blocks
            case "probe_tokens":
                return self._pattern(start.probe_tokens)
            case _:
                raise InvalidRequest("what", "A fetch names 'hashes' or 'probe_tokens'.")

    def _pattern(self, num_tokens: int) -> list[BlockId]:
        """Free blocks, filled with something that is nobody's and that changes each time."""
        layout, pool = self._layout, self._pool
        largest = MAX_PROBE_BYTES // (layout.num_layers * layout.num_planes * layout.block_bytes)
        wanted = max(1, -(-num_tokens // layout.block_size))
        blocks = pool.allocate(min(wanted, max(1, largest), pool.num_free)) or []
        self._num_probes += 1
        _fill(self._memory, layout, blocks, _PATTERNS[self._num_probes % len(_PATTERNS)])
        return blocks

    async def _write(self, call: Call, transfer: OutgoingTransfer, receiver: WorkerAddress) -> None:
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read(call, transfer, receiver))
            while not transfer.is_closed:
                try:
                    async with asyncio.timeout(self._lease_s / 3):
                        await transfer.closed()
                except TimeoutError:
                    if not self._writes.stand_still(transfer, self._lease_s):
                        await call.send(pb.FetchResponse(renewed=pb.Renewed()))
            written = await transfer.landed()
            await call.send(pb.FetchResponse(written=written_to_pb(written)))
            reading.cancel()

    async def _read(self, call: Call, transfer: OutgoingTransfer, receiver: WorkerAddress) -> None:
        try:
            async with Patience(self._lease_s):
                message = await call.receive()
        except TimeoutError:
            message = None
        if message is None or message.WhichOneof("event") != "grant":
            transfer.stop("no grant came")
            return
        await self._writes.grant(transfer, grant_from_pb(message.grant), receiver)
        while (message := await call.receive()) is not None:
            transfer.renew(message.renew.epoch)


def _fill(memory: Pool, layout: KvLayout, blocks: list[BlockId], value: int) -> None:
    """Every byte of these blocks, wherever the pool lies."""
    buffer = memory.buffer
    flat: Any = np.frombuffer(buffer, np.uint8) if isinstance(buffer, memoryview) else buffer
    planes = layout.num_layers * layout.num_planes
    flat.reshape(planes, layout.num_blocks, layout.block_bytes)[:, blocks] = value
