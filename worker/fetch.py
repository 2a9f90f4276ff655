"""A prefix that another worker has cached, brought here instead of being computed.

Only blocks that are missing here move. What arrived is cached content like any other, and the
sequence that wanted it holds it until it is scheduled. A fetch that fails costs its time limit
at the most: the prompt is computed.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence as Sequences
from typing import NamedTuple

from cluster.codec import hashes_to_bytes
from cluster.errors import FingerprintMismatch, PenstockError
from cluster.lateness import Patience
from cluster.types import BlockId, GrainHash, WorkerAddress
from engine.sequence import Sequence
from kv_transfer.incoming import Reservation
from penstock.v1 import worker_pb2 as pb
from worker.compute import Compute
from worker.link_costs import LinkCosts
from worker.loans import Borrowing, Loans
from worker.rests import Rests

logger = logging.getLogger(__name__)


class _Begun(NamedTuple):
    """A fetch whose blocks are reserved."""

    reservation: Reservation
    num_bytes: int
    asked: float  # monotonic


class Fetches:
    def __init__(
        self,
        me: WorkerAddress,
        compute: Compute,
        loans: Loans,
        rests: Rests,
        link_costs: LinkCosts,
        *,
        limit_s: float,
    ) -> None:
        self._me = me
        self._compute = compute
        self._kv = compute.kv
        self._loans = loans
        self._rests = rests
        self._link_costs = link_costs
        self._limit_s = limit_s
        # By the first grain that is missing: who wants the same waits, and finds it cached.
        self._locks: dict[GrainHash, asyncio.Lock] = {}
        self.num_fetched = 0
        self.num_tokens = 0
        self.num_failed = 0

    async def fetch(self, sequence: Sequence, request: pb.DecodeRequest) -> None:
        """Afterwards the sequence holds what its prefix has here, fetched blocks among it.

        None is fetched without a source; but who lacks what is being fetched for another waits for
        it, for routers count on it. Raises nothing but CancelledError.
        """
        source = request.source
        if not source.incarnation and not self._locks:
            return
        hashes = sequence.hashes(sequence.num_tokens - 1, self._kv.hash_grain)
        have = self._num_cached(hashes)
        if have == len(hashes) or not sequence.reuses_prefix:
            return
        num_expected = request.source_tokens  # 0: unknown
        num_there = num_expected // self._kv.hash_grain if num_expected else len(hashes)
        is_elsewhere = source.incarnation not in ("", self._me.incarnation)
        if not is_elsewhere or num_there <= have:
            await self._until_fetched(hashes[have])
            return
        try:
            lender = self._loans.peers.named(source.worker_id, source.incarnation)
            await self._fetch_once(sequence, lender, hashes, have)
        except (PenstockError, TimeoutError) as error:
            self.num_failed += 1
            logger.warning(
                "request %s: its prefix cannot be fetched from %s (%s): computing it",
                sequence.request_id,
                source.worker_id,
                str(error) or type(error).__name__,
            )

    async def _fetch_once(
        self, sequence: Sequence, source: WorkerAddress, hashes: Sequences[GrainHash], have: int
    ) -> None:
        """Fetches the prefix, unless another request has meanwhile."""
        lock = self._locks.setdefault(hashes[have], asyncio.Lock())
        begun: list[_Begun] = []
        waits_for_another = lock.locked()  # which takes of our time: its source is not to blame
        try:
            async with Patience(self._limit_s), lock:
                if self._num_cached(hashes) == have:
                    self._rests.check(source)
                    await self._fetch(sequence, source, hashes, begun)
        except TimeoutError:
            if not waits_for_another:
                self._learn_slow(source, begun)
                self._rests.begin(source)
            raise
        finally:
            if not lock.locked():
                self._locks.pop(hashes[have], None)

    async def _until_fetched(self, missing: GrainHash) -> None:
        """Waits; returns at once, if nobody fetches it."""
        if (lock := self._locks.get(missing)) is not None:
            with contextlib.suppress(TimeoutError):
                async with Patience(self._limit_s), lock:
                    pass

    def _num_cached(self, hashes: Sequences[GrainHash]) -> int:
        """Leading grains."""
        kv = self._kv
        num_blocks = len(kv.match(hashes, len(hashes) * kv.hash_grain))
        return num_blocks * kv.block_size // kv.hash_grain

    def _learn_slow(self, source: WorkerAddress, begun: Sequences["_Begun"]) -> None:
        """Learns that what does not come in time costs as long at the least: else the next is sent
        the same way. A source that falls silent has stopped, which says nothing of the link."""
        for each in begun:
            if each.reservation.has_renewed and not each.reservation.has_lapsed:
                seconds = time.monotonic() - each.asked
                self._link_costs.fetched(source.worker_id, each.num_bytes, seconds)

    async def _fetch(
        self,
        sequence: Sequence,
        source: WorkerAddress,
        hashes: Sequences[GrainHash],
        begun: list["_Begun"],
    ) -> None:
        _check_exact(self._me, source)
        taken: list[BlockId] = []  # the whole table; what is cached of it is held
        num_cached, asked = 0, time.monotonic()

        def found(borrowing: Borrowing, num_found: int) -> bool:
            nonlocal num_cached
            cached, fresh = self._take(hashes, num_found)
            taken.extend(cached + fresh)
            num_cached = len(cached)
            if not fresh:
                return False
            start = num_cached * self._kv.block_size
            stop = start + len(fresh) * self._kv.block_size
            layout = self._me.fingerprint.layout
            num_bytes = layout.pool_bytes // layout.num_blocks * len(fresh)
            begun.append(_Begun(borrowing.grant(taken, start, stop), num_bytes, asked))
            return True

        start = pb.LendStart(hashes=hashes_to_bytes(hashes))
        try:
            filled = await self._loans.borrow(source, start, found, narrows=False)
        except BaseException:
            self._compute.release(taken[:num_cached])  # the rest is the table's
            raise
        num_here = num_cached * self._kv.block_size
        whole_from = num_here if filled is None else filled.reservation.whole_from
        self._kv.store(hashes, taken, num_cached, whole_from=whole_from)
        sequence.block_table = taken
        if filled is not None:
            seconds = time.monotonic() - asked
            self._link_costs.fetched(source.worker_id, filled.written.num_bytes, seconds)
            self.num_fetched += 1
            self.num_tokens += filled.written.stop - filled.written.start

    def _take(
        self, hashes: Sequences[GrainHash], num_found: int
    ) -> tuple[list[BlockId], list[BlockId]]:
        """Holds what is cached here, and allocates blocks for what the source has beyond it;
        none where memory is short: whoever runs may need a block each."""
        kv = self._kv
        num_asked = len(hashes) * kv.hash_grain
        cached = kv.match(hashes, num_asked)
        kv.hold(cached)
        num_missing = min(num_found, num_asked) // kv.block_size - len(cached)
        head_room = self._compute.num_running + 1
        if num_missing <= 0 or num_missing + head_room > kv.num_available:
            return cached, []
        return cached, kv.allocate(num_missing, after=cached[-1] if cached else None) or []


def _check_exact(me: WorkerAddress, source: WorkerAddress) -> None:
    """Checks that what is cached is as exact as what is computed here: it has the same hashes."""
    mine, other = me.fingerprint.layout.dtype, source.fingerprint.layout.dtype
    if mine != other:
        raise FingerprintMismatch(
            f"'{source.worker_id}' keeps KV as {other}, '{me.worker_id}' as {mine}: a converted "
            "prefix would pass for an exact one."
        )
