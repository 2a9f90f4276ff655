"""The prefill worker's RPC: one hand-over a call.

A call ends in one of three ways: everything landed, the receiver left, or something failed.
Blocks are given back when the transfer is closed, which the call does not wait for.
"""

import asyncio
from collections.abc import Callable

from cluster.block_hash import hash_key
from cluster.codec import address_from_pb, compute_request_from_pb
from cluster.errors import Draining, InvalidRequest, Overloaded, PenstockError
from cluster.open_calls import OpenCalls
from cluster.rpc import Call
from cluster.secrets import Secrets
from cluster.transfer_codec import grant_from_pb, written_to_pb
from cluster.types import ComputeRequest, WorkerAddress
from cluster.watch import WatchFeed
from kv_transfer.outgoing import OutgoingTransfer
from penstock.v1 import worker_pb2 as pb
from prefill_worker.config import PrefillWorkerConfig
from prefill_worker.hand_over import HandOver
from prefill_worker.scheduler import PrefillScheduler
from worker.transfers import Transfers


class PrefillService:
    """Owns the hand-overs of one prefill worker."""

    def __init__(
        self,
        config: PrefillWorkerConfig,
        worker: WorkerAddress,
        secrets: Secrets,
        scheduler: PrefillScheduler,
        transfers: Transfers,
        feed: WatchFeed,
        open_calls: OpenCalls,
        *,
        is_making_progress: Callable[[], bool],
    ) -> None:
        """While the engine makes no progress, no sign of life is sent."""
        self._config = config
        self._worker = worker
        self._secrets = secrets
        self._scheduler = scheduler
        self._writes = transfers.writes
        self._fetches = transfers.fetches
        self._feed = feed
        self._is_making_progress = is_making_progress
        self.open_calls = open_calls

    async def prefill(self, call: Call) -> None:
        """`Prefill.Prefill`."""
        start = await self._first_message(call)
        decode = address_from_pb(start.decode)
        hand_over = HandOver(
            self._request(start), self._open_transfer, overlap=self._config.overlap
        )
        try:
            with self.open_calls:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._begin(hand_over, start))
                    reading = group.create_task(self._read(call, hand_over, decode))
                    landing = group.create_task(self._land(hand_over))
                    await self._write(call, hand_over)
                    reading.cancel()
                    landing.cancel()
        finally:
            self._end(hand_over)

    # -- one hand-over -------------------------------------------------------------------

    async def _begin(self, hand_over: HandOver, start: pb.PrefillStart) -> None:
        """Queues the prompt, once what another worker has of it is here."""
        source = address_from_pb(start.source) if start.HasField("source") else None
        await self._fetches.fetch(hand_over.sequence, source, start.source_tokens)
        self._scheduler.submit(hand_over.sequence)
        self._feed.admitted(start.request_id)  # until then the router counts it itself

    async def _first_message(self, call: Call) -> pb.PrefillStart:
        if self.open_calls.is_draining:
            raise Draining(f"{self._worker.worker_id} is draining: prefill elsewhere.")
        if len(self._scheduler.batcher.waiting) >= self._config.max_waiting:
            raise Overloaded(f"{self._config.max_waiting} prompts wait at this worker already.")
        message = await call.receive()
        if message is None or message.WhichOneof("event") != "start":
            raise InvalidRequest("start", "A hand-over begins with 'start'.")
        start: pb.PrefillStart = message.start
        return start

    def _request(self, start: pb.PrefillStart) -> ComputeRequest:
        key = hash_key(
            self._secrets.hash_secret,
            tenant=start.tenant,
            cache_scope=start.cache_scope,
            model_digest=self._worker.fingerprint.model_digest,
        )
        request = compute_request_from_pb(start, hash_key=key)
        num_tokens = len(request.prompt_ids) + max(map(len, request.emitted), default=0)
        pool = self._scheduler.batcher.pool
        if num_tokens > pool.num_blocks * pool.block_size:
            raise InvalidRequest(
                "prompt_token_ids",
                f"{num_tokens} tokens can never fit this worker's pool of "
                f"{pool.num_blocks} blocks of {pool.block_size}.",
            )
        return request

    async def _read(self, call: Call, hand_over: HandOver, decode: WorkerAddress) -> None:
        while (message := await call.receive()) is not None:
            match message.WhichOneof("event"):
                case "grant":
                    await self._granted(hand_over, message.grant, decode)
                case "renew" if hand_over.transfer is not None:
                    hand_over.transfer.renew(message.renew.epoch)

    async def _granted(self, hand_over: HandOver, message: pb.Grant, decode: WorkerAddress) -> None:
        if hand_over.transfer is not None and hand_over.grant is None:
            hand_over.grant = grant_from_pb(message)
            await self._writes.grant(hand_over.transfer, hand_over.grant, decode)

    async def _land(self, hand_over: HandOver) -> None:
        await hand_over.is_computed.wait()  # `written` is the last message of a call
        assert hand_over.transfer is not None
        try:
            written = await hand_over.transfer.landed()
        except PenstockError as error:
            hand_over.outbox.put_nowait(error)
        else:
            message = pb.PrefillResponse(written=written_to_pb(written))
            hand_over.outbox.put_nowait(message)

    async def _write(self, call: Call, hand_over: HandOver) -> None:
        """Sends what there is to tell, and a sign of life where there is nothing."""
        while True:
            try:
                async with asyncio.timeout(self._config.lease_s / 3):
                    message = await hand_over.outbox.get()
            except TimeoutError:
                if self._moves(hand_over):
                    await call.send(pb.PrefillResponse(renewed=pb.Renewed()))
                continue
            if isinstance(message, Exception):
                raise message
            call.tokens_emitted += len(message.first_tokens.tokens)
            await call.send(message)
            if message.HasField("written"):
                return

    def _moves(self, hand_over: HandOver) -> bool:
        """While it does not, its receiver hears nothing, and computes the prompt itself."""
        transfer = hand_over.transfer
        is_stuck = transfer is not None and self._writes.stand_still(transfer, self._config.lease_s)
        return self._is_making_progress() and not is_stuck

    def _open_transfer(self, hand_over: HandOver) -> OutgoingTransfer:
        sequence = hand_over.sequence
        return self._writes.open(
            sequence.block_table,
            sequence.num_tokens,
            whole_from=self._scheduler.batcher.pool.whole_from(sequence.block_table),
            on_closed=lambda: self._closed(hand_over),
        )

    def _closed(self, hand_over: HandOver) -> None:
        if hand_over.has_ended:
            self._scheduler.drop(hand_over.sequence)

    def _end(self, hand_over: HandOver) -> None:
        """The call is over. Its blocks go once no write can read them."""
        hand_over.has_ended = True
        transfer = hand_over.transfer
        if transfer is not None and not transfer.is_closed:
            transfer.stop("the call ended")
        else:
            self._scheduler.drop(hand_over.sequence)
