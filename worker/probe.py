"""A few blocks of nobody's content, fetched over the whole real path: grant, write, digest and
verify. It warms a pair up, measures it, and shows that it works."""

import time
from dataclasses import dataclass

from cluster.errors import DeadlineExceeded, Overloaded
from cluster.lateness import Patience
from cluster.rpc import Call
from cluster.types import BlockId, Incarnation, WorkerAddress
from cluster.worker_codec import address_from_pb, address_to_pb
from penstock.v1 import worker_pb2 as pb
from worker.compute import Compute
from worker.link_costs import LinkCosts
from worker.loans import Borrowing, Loans

LIMIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """One probe as its receiver saw it."""

    transport: str
    num_tokens: int
    num_bytes: int
    seconds: float  # from asking the source to verified
    write_s: float  # of these: the source's writes
    connect_s: float  # before these: reaching the source's pool, if that was to be done


class Probes:
    def __init__(
        self,
        compute: Compute,
        loans: Loans,
        link_costs: LinkCosts,
    ) -> None:
        self._compute = compute
        self._loans = loans
        self._link_costs = link_costs
        self.last: dict[Incarnation, ProbeResult] = {}  # of each source

    async def probe(
        self,
        source: WorkerAddress,
        num_tokens: int,
        *,
        by: str | None = None,
        limit_s: float = LIMIT_S,
    ) -> ProbeResult:
        """Moves as many tokens, or fewer where either end has fewer blocks free. Never evicts.

        Raises FingerprintMismatch or TransferFailed where the pair cannot exchange KV,
        Overloaded where no block is free for it, DeadlineExceeded when it takes too long.
        """
        try:
            async with Patience(limit_s):
                result = await self._probe(source, num_tokens, by)
        except TimeoutError:
            raise DeadlineExceeded(f"a probe of '{source.worker_id}'") from None
        self.last[source.incarnation] = result
        self._link_costs.fetched(source.worker_id, result.num_bytes, result.seconds)
        return result

    async def serve(self, request: pb.ProbeRequest, call: Call) -> pb.ProbeResponse:
        """`Worker.Probe`."""
        source = address_from_pb(request.source)
        result = await self.probe(source, request.num_tokens, by=request.transport or None)
        return pb.ProbeResponse(
            transport=result.transport,
            num_tokens=result.num_tokens,
            num_bytes=result.num_bytes,
            seconds=result.seconds,
            write_seconds=result.write_s,
            connect_seconds=result.connect_s,
        )

    async def _probe(self, source: WorkerAddress, num_tokens: int, by: str | None) -> ProbeResult:
        begin = time.monotonic()
        taken: list[BlockId] = []

        def found(borrowing: Borrowing, num_found: int) -> bool:
            taken.extend(self._free_blocks(num_found))
            if taken:
                num_free = len(taken) * self._compute.kv.block_size
                borrowing.grant(taken, 0, min(num_found, num_free))
            return bool(taken)

        me = self._loans.peers.me
        # We may have joined just now: a source knows us from then on.
        start = pb.LendStart(borrower=address_to_pb(me), probe_tokens=num_tokens)
        filled = await self._loans.borrow(source, start, found, by=by)
        if filled is None:
            raise Overloaded(f"'{source.worker_id}' or '{me.worker_id}' has no block free.")
        self._compute.release(taken)
        return ProbeResult(
            transport=filled.reservation.peer.transport,
            num_tokens=filled.written.stop,
            num_bytes=filled.written.num_bytes,
            seconds=time.monotonic() - begin - filled.connect_s,
            write_s=filled.written.write_s,
            connect_s=filled.connect_s,
        )

    def _free_blocks(self, num_tokens: int) -> list[BlockId]:
        kv = self._compute.kv
        return kv.allocate(min(-(-num_tokens // kv.block_size), kv.num_free)) or []
