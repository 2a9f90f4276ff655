"""Serves `Worker.Lend`: lends what is cached here, or a pattern, to another worker, and writes it
there. Prompts are for who computes them.

The blocks are held until no write can read them any more, which the call does not wait for.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from cluster.block_hash import HASH_BYTES
from cluster.codec import hashes_from_bytes
from cluster.errors import Draining, InvalidRequest
from cluster.open_calls import OpenCalls
from cluster.rpc import Call
from cluster.types import BlockId, KvLayout, WorkerAddress
from cluster.worker_codec import address_from_pb
from kv_transfer.pool import KvPool
from penstock.v1 import worker_pb2 as pb
from worker.compute import Compute
from worker.loans import Loans
from worker.writes import Writes

MAX_PROBE_BYTES = 64 << 20
_PATTERNS = range(1, 64)  # bytes that are small numbers in every float format

LendPrompt = Callable[[pb.DecodeRequest, WorkerAddress, Call], Awaitable[None]]


class Source:
    def __init__(
        self,
        me: WorkerAddress,
        memory: KvPool,
        compute: Compute,
        writes: Writes,
        loans: Loans,
        open_calls: OpenCalls,
    ) -> None:
        self.lend_prompt: LendPrompt | None = None  # of a role that computes for others
        self.num_tokens = 0  # lent so far, without probes
        self._me = me
        self._layout = me.fingerprint.layout
        self._memory = memory
        self._kv = compute.kv
        self._compute = compute
        self._writes = writes
        self._loans = loans
        self._open_calls = open_calls
        self._num_probes = 0

    async def lend(self, call: Call) -> None:
        """`Worker.Lend`."""
        message = await call.receive()
        if message is None or message.WhichOneof("event") != "start":
            raise InvalidRequest("start", "A loan begins with 'start'.")
        start: pb.LendStart = message.start
        borrower = self._borrower(start.borrower)
        if self._open_calls.is_draining:
            raise Draining(f"{self._me.worker_id} is draining: compute, or borrow elsewhere.")
        with self._open_calls:
            if start.WhichOneof("what") == "prompt":
                if self.lend_prompt is None:
                    raise InvalidRequest("what", "Prompts are computed by prefill workers.")
                await self.lend_prompt(start.prompt, borrower, call)
            else:
                await self._lend_cached(self._held(start), borrower, call)

    def _borrower(self, said: pb.WorkerAddress) -> WorkerAddress:
        """Raises UnknownPeer for one of whom nobody has told more than its name."""
        if said.incarnation and not said.address:
            return self._loans.peers.named(said.worker_id, said.incarnation)
        return address_from_pb(said)

    async def _lend_cached(
        self, blocks: list[BlockId], borrower: WorkerAddress, call: Call
    ) -> None:
        """Releases the blocks when no write can read them any more."""
        if not blocks:
            await call.send(pb.LendResponse(found=pb.Found()))
            return
        num_tokens = len(blocks) * self._layout.block_size
        transfer = self._writes.open(
            blocks,
            num_tokens,
            whole_from=self._kv.whole_from(blocks),
            on_closed=lambda: self._compute.release(blocks),
        )
        transfer.computed_all(num_tokens)
        lending = self._loans.lend()
        lending.found(transfer, num_tokens)
        await lending.serve(call, borrower, is_making_progress=lambda: True)

    def _held(self, start: pb.LendStart) -> list[BlockId]:
        """Blocks with a reference each."""
        match start.WhichOneof("what"):
            case "hashes":
                kv = self._kv
                most = kv.num_blocks * kv.block_size // kv.hash_grain
                hashes = hashes_from_bytes("hashes", start.hashes[: HASH_BYTES * most])
                blocks = kv.match(hashes, len(hashes) * kv.hash_grain)
                kv.hold(blocks)
                self.num_tokens += len(blocks) * self._layout.block_size
                return blocks
            case "probe_tokens":
                return self._pattern(start.probe_tokens)
            case _:
                raise InvalidRequest("what", "A loan names a 'prompt', 'hashes' or 'probe_tokens'.")

    def _pattern(self, num_tokens: int) -> list[BlockId]:
        """Free blocks, filled with something that is nobody's and that changes each time."""
        layout, kv = self._layout, self._kv
        largest = MAX_PROBE_BYTES // (layout.num_layers * layout.num_planes * layout.block_bytes)
        wanted = max(1, -(-num_tokens // layout.block_size))
        blocks = kv.allocate(min(wanted, max(1, largest), kv.num_free)) or []
        self._num_probes += 1
        _fill(self._memory, layout, blocks, _PATTERNS[self._num_probes % len(_PATTERNS)])
        return blocks


def _fill(memory: KvPool, layout: KvLayout, blocks: list[BlockId], value: int) -> None:
    """Every byte of these blocks, wherever the pool lies."""
    buffer = memory.buffer
    flat: Any = np.frombuffer(buffer, np.uint8) if isinstance(buffer, memoryview) else buffer
    planes = layout.num_layers * layout.num_planes
    flat.reshape(planes, layout.num_blocks, layout.block_bytes)[:, blocks] = value
