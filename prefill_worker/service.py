"""The prefill worker's work: prompts that decode workers borrow, computed here and written into
their blocks layer by layer.

A loan ends in one of three ways: everything landed, the borrower left, or something failed.
Blocks are given back when the transfer is closed, which the call does not wait for.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from cluster.codec import compute_request_from_pb, prompt_logprob_to_pb, sampled_to_pb
from cluster.errors import InternalError, InvalidRequest, Overloaded
from cluster.rpc import Call
from cluster.secrets import Secrets
from cluster.tracing import Tracing
from cluster.types import ComputeRequest, WorkerAddress
from cluster.watch import WatchFeed
from engine.batcher import Drawn
from engine.sequence import Sequence
from kv_transfer.outgoing import OutgoingTransfer
from penstock.v1 import worker_pb2 as pb
from prefill_worker.config import PrefillWorkerConfig
from prefill_worker.trace import LoanTrace
from worker.compute import Compute
from worker.loans import Lending
from worker.transfers import Transfers

_UNTRACED: Final = nullcontext()


class PromptLoan:
    """One prompt computed for a borrower. The scheduler tells it what happens."""

    def __init__(
        self,
        request: ComputeRequest,
        lending: Lending,
        open_transfer: Callable[["PromptLoan"], OutgoingTransfer],
        *,
        overlap: bool,
    ) -> None:
        self.received_at = time.monotonic()
        self.fetched_at: float | None = None
        self.scheduled_at: float | None = None
        self.first_token_at: float | None = None
        self.sequence = Sequence(
            request,
            num_choices=request.params.num_choices,
            owner=self,
            arrived_at=self.received_at,
        )
        self.transfer: OutgoingTransfer | None = None  # from when it is scheduled
        self.has_ended = False  # the call; its transfer may go on
        self._lending = lending
        self._open_transfer = open_transfer
        self._overlap = overlap
        self._has_given_up = False
        self._forward_s = 0.0

    def scheduled(self) -> None:
        """Asks for destination blocks: now, not when it was queued."""
        self.scheduled_at = time.monotonic()
        self.transfer = self._open_transfer(self)
        if self._overlap:
            self.transfer.computed_all(self.sequence.num_cached)
        self._lending.found(self.transfer, self.sequence.num_tokens)

    def computed(self, layer: int, num_tokens: int) -> None:
        """Runs on the engine's thread."""
        assert self.transfer is not None
        if self._overlap:
            self.transfer.computed(layer, num_tokens)

    def chunk_done(self, seconds: float) -> None:
        self._forward_s += seconds

    def first_tokens(self, drawn: list[Drawn]) -> None:
        assert self.transfer is not None
        assert self.scheduled_at is not None
        self.transfer.computed_all(self.sequence.num_computed)
        self.first_token_at = time.monotonic()
        self._lending.first_tokens(
            pb.FirstTokens(
                tokens=[sampled_to_pb(each.token) for each in drawn if each.token is not None],
                queue_seconds=self.scheduled_at - self.received_at,
                prefill_seconds=self.first_token_at - self.scheduled_at,
                forward_seconds=self._forward_s,
                cached_tokens=self.sequence.num_cached,
                prompt_logprobs=map(prompt_logprob_to_pb, drawn[0].prompt_logprobs),
            )
        )

    def give_up(self) -> bool:
        """The borrower has had no room so far, and the blocks are needed: it computes itself."""
        if self._lending.is_granted or self._has_given_up:
            return False
        self._has_given_up = True
        self._lending.fail(Overloaded("This prompt waited for its receiver's blocks."))
        return True

    def failed(self, error: Exception) -> None:
        self._lending.fail(InternalError())


class PrefillService:
    """Owns the prompts that one prefill worker computes for others."""

    def __init__(
        self,
        config: PrefillWorkerConfig,
        worker: WorkerAddress,
        secrets: Secrets,
        compute: Compute,
        transfers: Transfers,
        feed: WatchFeed,
        *,
        is_making_progress: Callable[[], bool],
        tracing: Tracing | None = None,
    ) -> None:
        """While the engine makes no progress, no sign of life is sent."""
        self._config = config
        self._worker = worker
        self._secrets = secrets
        self._compute = compute
        self._writes = transfers.writes
        self._loans = transfers.loans
        self._fetches = transfers.fetches
        self._feed = feed
        self._is_making_progress = is_making_progress
        self._tracing = tracing

    async def lend(self, message: pb.DecodeRequest, borrower: WorkerAddress, call: Call) -> None:
        """Serves a loan of a prompt. Raises Overloaded, InvalidRequest before anything is done."""
        if self._compute.num_waiting >= self._config.max_waiting:
            raise Overloaded(f"{self._config.max_waiting} prompts wait at this worker already.")
        lending = self._loans.lend(owes_tokens=True)
        loan = PromptLoan(
            self._request(message), lending, self._open_transfer, overlap=self._config.overlap
        )
        tracing = self._tracing
        traced = _UNTRACED if tracing is None else self._traced(tracing, loan, message)
        try:
            with traced:
                async with asyncio.TaskGroup() as group:
                    beginning = group.create_task(self._begin(loan, message))
                    await lending.serve(call, borrower, is_making_progress=self._is_making_progress)
                    beginning.cancel()
        finally:
            self._end(loan)

    async def _begin(self, loan: PromptLoan, message: pb.DecodeRequest) -> None:
        """Queues the prompt, once what another worker has of it is here."""
        await self._fetches.fetch(loan.sequence, message)
        loan.fetched_at = time.monotonic()
        self._compute.submit(loan.sequence)
        self._feed.admitted(message.request_id)  # until then the router counts it itself

    def _traced(
        self, tracing: Tracing, loan: PromptLoan, message: pb.DecodeRequest
    ) -> AbstractContextManager[object]:
        """What is told of a traced prompt at the end of its call."""
        trace = tracing.begin("prefill_worker", message.traceparent, message.tracestate)
        if trace is None:
            return _UNTRACED
        is_fetched = message.HasField("source")
        return LoanTrace(trace=trace, loan=loan, model=self._config.model, is_fetched=is_fetched)

    def _request(self, message: pb.DecodeRequest) -> ComputeRequest:
        request = compute_request_from_pb(
            message,
            hash_secret=self._secrets.hash_secret,
            model_digest=self._worker.fingerprint.model_digest,
        )
        num_tokens = len(request.prompt_ids) + max(map(len, request.emitted), default=0)
        kv = self._compute.kv
        if num_tokens > kv.num_blocks * kv.block_size:
            raise InvalidRequest(
                "prompt_token_ids",
                f"{num_tokens} tokens can never fit this worker's pool of "
                f"{kv.num_blocks} blocks of {kv.block_size}.",
            )
        return request

    def _open_transfer(self, loan: PromptLoan) -> OutgoingTransfer:
        blocks = loan.sequence.block_table
        return self._writes.open(
            blocks,
            loan.sequence.num_tokens,
            whole_from=self._compute.kv.whole_from(blocks),
            on_closed=lambda: self._closed(loan),
        )

    def _closed(self, loan: PromptLoan) -> None:
        if loan.has_ended:
            self._compute.drop(loan.sequence)

    def _end(self, loan: PromptLoan) -> None:
        """The call is over. Its blocks go once no write can read them."""
        loan.has_ended = True
        if loan.transfer is None or loan.transfer.is_closed:
            self._compute.drop(loan.sequence)
