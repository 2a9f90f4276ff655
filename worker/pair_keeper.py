"""Pairs are made when a member joins, and not by the first request that needs one.

A decode worker fetches a few tokens of nobody's from each prefill worker: that connects the
best transport, dials, maps, and runs grant, write, digest and verify once. A new prefill worker
asks the decode workers to do so at once. Neither says that it serves before it has tried all
whom it found. Pairs that only fetch connect when they first do: any two workers might, few will,
and a fetch has a time limit and an alternative.
"""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from cluster.errors import DeadlineExceeded, Overloaded, PenstockError, TransferFailed
from cluster.types import Incarnation, Member, Role, WorkerAddress
from cluster.worker_codec import address_to_pb
from kv_transfer.transport import Peer
from penstock.v1 import worker_pb2 as pb
from worker.peers import Peers
from worker.probe import Probes

logger = logging.getLogger(__name__)

PROBE_S = 3.0
SETTLE_S = 1.0  # a member that hangs holds up nobody for longer
LAPSE_S = 1.5
FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 5.0


class PairKeeper:
    """Owns one task for each member that this worker exchanges KV with."""

    def __init__(
        self,
        peers: Peers,
        probes: Probes,
        tasks: asyncio.TaskGroup,
        *,
        num_tokens: int,
        num_measured_tokens: int = 0,
    ) -> None:
        """Moves `num_tokens` over each new pair; with 0 pairs are made when first needed. Then,
        where these are more, `num_measured_tokens`: what setting up costs and what a byte does
        cannot be told from one size."""
        self._peers = peers
        self._probes = probes
        self._tasks = tasks
        self._num_tokens = num_tokens
        self._num_measured_tokens = num_measured_tokens
        self._keeping: dict[Incarnation, asyncio.Task[None]] = {}
        self._untried: set[Incarnation] | None = None  # of those found at first
        self._refused: dict[Incarnation, str] = {}  # why there is no pair with these members
        self.settled = asyncio.Event()  # every member found at first has been tried
        self.num_up = 0

    @property
    def _measures(self) -> bool:
        return self._num_measured_tokens > self._num_tokens

    @property
    def num_refused(self) -> int:
        return len(self._refused)

    def check(self, source: WorkerAddress) -> None:
        """Raises TransferFailed, at once, while nothing reaches us from this member."""
        if (reason := self._refused.get(source.incarnation)) is not None:
            raise TransferFailed(reason)

    def update(self, me: Member, members: Sequence[Member]) -> None:
        """The members as of now; after each heartbeat."""
        others = [one for one in members if one.worker.incarnation != me.worker.incarnation]
        self._peers.me = me.worker
        self._peers.update(others)
        lives = {other.worker.incarnation for other in others}
        for gone in self._keeping.keys() - lives:
            self._keeping.pop(gone).cancel()
            self._refused.pop(gone, None)
        # A record may lapse while its pair lives: it was tried, and need not be again.
        for gone in self._probes.last.keys() - lives:
            if not self._peers.pairs.is_connected(gone):
                del self._probes.last[gone]
        needed = [other for other in others if self._num_tokens and _exchange_kv(me, other)]
        is_first = self._untried is None
        if self._untried is None:
            self._untried = {other.worker.incarnation for other in needed}
            asyncio.get_running_loop().call_later(SETTLE_S, self.settled.set)
        for other in needed:
            if other.worker.incarnation in self._keeping:
                continue
            if me.role is Role.DECODE:
                self._start(other.worker, self._keep(other.worker))
            elif is_first:
                self._start(other.worker, self._ask(me.worker, other.worker))
        self._settle_if_tried()

    def close(self) -> None:
        for task in self._keeping.values():
            task.cancel()

    def _start(self, worker: WorkerAddress, keep: Coroutine[Any, Any, None]) -> None:
        self._keeping[worker.incarnation] = self._tasks.create_task(keep)

    async def _keep(self, source: WorkerAddress) -> None:
        """Keeps it until it is no member any more, or cancelled: up, and up again if it breaks."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                await self._make(source)
                backoff_s = FIRST_BACKOFF_S
                await self._stay(source)
                # As a rule its process has ended, and a heartbeat will say so.
                await asyncio.sleep(LAPSE_S)
            except PenstockError as error:
                self._refuse(source, error)
                await asyncio.sleep(backoff_s)
                backoff_s = min(LAST_BACKOFF_S, 2 * backoff_s)

    async def _make(self, source: WorkerAddress) -> None:
        try:
            if source.incarnation in self._probes.last:
                return  # it has asked us to before
            tried: Peer | None = None
            while source.incarnation not in self._probes.last:
                peer = await self._peers.connect(source)
                if peer is tried:  # no other transport reaches it: later, not at once for ever
                    raise TransferFailed(f"No probe of '{source.worker_id}' came through.")
                await self._try(source, peer)
                tried = peer
            if self._measures:
                await self._probes.probe(source, self._num_measured_tokens, limit_s=PROBE_S)
        except Overloaded:
            pass  # no block to spare: connected will do
        finally:
            self._tried(source)

    async def _try(self, source: WorkerAddress, peer: Peer) -> None:
        """One probe. Raises what it failed of, unless there is another transport to try."""
        try:
            await self._probes.probe(source, self._num_tokens, by=peer.transport, limit_s=PROBE_S)
        except (TransferFailed, DeadlineExceeded) as error:
            if not self._peers.pairs.distrust(peer, str(error)):
                raise
            logger.warning(
                "KV from '%s' does not come by %s: %s", source.worker_id, peer.transport, error
            )

    async def _stay(self, source: WorkerAddress) -> None:
        """Returns when the connection is over, though its worker may be a member yet."""
        self._refused.pop(source.incarnation, None)
        peer = await self._peers.connect(source)
        logger.info("KV from '%s' comes by %s", source.worker_id, peer.transport)
        self.num_up += 1
        try:
            await peer.life.wait()
        finally:
            self.num_up -= 1
            if peer.life.is_over:
                self._probes.last.pop(source.incarnation, None)

    async def _ask(self, me: WorkerAddress, receiver: WorkerAddress) -> None:
        """It will find us by itself within a heartbeat: this is for who needs us before."""
        sizes = [self._num_tokens, *([self._num_measured_tokens] if self._measures else [])]
        channel = self._peers.channel(receiver)
        try:
            for num_tokens in sizes:
                request = pb.ProbeRequest(source=address_to_pb(me), num_tokens=num_tokens)
                await channel.unary("penstock.v1.Worker", "Probe", request, timeout_s=SETTLE_S)
        except PenstockError as error:
            logger.info("'%s' has no pair with us yet: %s", receiver.worker_id, error)
        finally:
            self._tried(receiver)

    def _refuse(self, source: WorkerAddress, error: PenstockError) -> None:
        """Loudly, but each reason once: until it is up, prompts for this pair are computed by
        the decode worker."""
        reason = str(error)
        if self._refused.get(source.incarnation) != reason:
            logger.error("no KV from '%s': %s", source.worker_id, reason)
        self._refused[source.incarnation] = reason

    def _tried(self, worker: WorkerAddress) -> None:
        if self._untried is not None:
            self._untried.discard(worker.incarnation)
        self._settle_if_tried()

    def _settle_if_tried(self) -> None:
        if not self._untried:
            self.settled.set()


def _exchange_kv(one: Member, other: Member) -> bool:
    """Hand-overs go between roles; and while a cluster is upgraded, within a wire version."""
    versions = {each.worker.fingerprint.wire_version for each in (one, other)}
    return one.role is not other.role and len(versions) == 1
