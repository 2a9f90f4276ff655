"""The decode worker's RPC. It owns a request's stream, blocks, deadline and cancellation:
whatever ends the call ends all of it. A call over frames may outlive its router.
"""

import asyncio
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from cluster.codec import compute_request_from_pb
from cluster.detokenizer import new_detokenizer
from cluster.errors import Draining, InvalidRequest, Overloaded
from cluster.open_calls import OpenCalls
from cluster.rpc import Call
from cluster.secrets import Secrets
from cluster.tokenizer import Tokenizer
from cluster.tracing import Tracing
from cluster.types import ComputeRequest, WorkerAddress
from cluster.watch import WatchFeed
from decode_worker.answer import OwnedAnswer
from decode_worker.config import DecodeWorkerConfig
from decode_worker.remote import RemotePrompts
from decode_worker.timeline import Moment, RequestTimeline
from decode_worker.trace import AnswerTrace
from engine.sequence import Sequence
from penstock.v1 import inference_pb2
from penstock.v1 import worker_pb2 as pb
from worker.compute import DecodeCompute
from worker.fetch import Fetches
from worker.frame_call import FrameCall
from worker.outliving import AnswerKey

_LOOK_S = 0.5  # while somebody is paused
_UNTRACED: Final = nullcontext()


class DecodeService:
    """Owns the answers in progress on one decode worker."""

    def __init__(
        self,
        config: DecodeWorkerConfig,
        worker: WorkerAddress,
        secrets: Secrets,
        tokenizer: Tokenizer,
        compute: DecodeCompute,
        remote_prompts: RemotePrompts,
        fetches: Fetches,
        feed: WatchFeed,
        open_calls: OpenCalls,
        tracing: Tracing | None = None,
    ) -> None:
        self._config = config
        self._worker = worker
        self._secrets = secrets
        self._tokenizer = tokenizer
        self._compute = compute
        self._remote_prompts = remote_prompts
        self._fetches = fetches
        self._feed = feed
        self.open_calls = open_calls
        self._tracing = tracing
        self._looker: asyncio.TimerHandle | None = None

    async def generate(self, message: pb.DecodeRequest, call: Call | FrameCall) -> None:
        """`Decode.Generate`."""
        request = self._request(message)
        self._admit(request)
        answer, tracing = self._answer(message, request), self._tracing
        if message.resume_secret and isinstance(call, FrameCall):
            key = AnswerKey(message.tenant, message.request_id, message.resume_secret)
            if call.outlive(key, num_emitted=_num_emitted(request)):
                answer.accepted.resume_secret = message.resume_secret
        traced = _UNTRACED if tracing is None else self._traced(tracing, message, answer)
        try:
            with self.open_calls, traced:
                async with asyncio.TaskGroup() as group:
                    computing = group.create_task(self._computed(answer, message))
                    await self._relay(answer, call)
                    computing.cancel()  # a hand-over whose first token was the last
        finally:
            for sequence in answer.sequences:
                self._compute.drop(sequence)

    async def _computed(self, answer: OwnedAnswer, message: pb.DecodeRequest) -> None:
        if answer.is_finished:
            return  # an earlier attempt sent all but the last message
        if message.HasField("prefill") and not _is_uneven(answer.request):
            self._feed.admitted(message.request_id)
            await self._remote_prompts.receive(answer, message)
        else:
            await self._prefill_here(answer, message)

    async def _prefill_here(self, answer: OwnedAnswer, message: pb.DecodeRequest) -> None:
        request = answer.request
        num_choices = request.params.num_choices
        arrived_at = answer.timeline.arrived_at
        if _is_uneven(request):
            left = [i for i in range(num_choices) if answer.choices[i].finish is None]
            sequences = [
                Sequence(request, choice=i, owner=answer, arrived_at=arrived_at) for i in left
            ]
        else:
            sequences = [
                Sequence(request, num_choices=num_choices, owner=answer, arrived_at=arrived_at)
            ]
        await self._fetches.fetch(sequences[0], message)
        answer.timeline.stamp(Moment.FETCHED)
        for sequence in sequences:
            answer.sequences.add(sequence)
            self._compute.submit(sequence)
        self._feed.admitted(message.request_id)  # until then the router counts it itself

    async def _relay(self, answer: OwnedAnswer, call: Call | FrameCall) -> None:
        call.phase = "queue"
        while (message := await answer.next_message()) is not None:
            call.phase, call.tokens_emitted = "decode", answer.num_sent
            await call.send(message)
            for sequence in answer.sequences:
                self._compute.resume(sequence)

    def _traced(
        self, tracing: Tracing, message: pb.DecodeRequest, answer: OwnedAnswer
    ) -> AbstractContextManager[object]:
        """What is told of a traced request at its end; what others do for it is told as a part."""
        trace = tracing.begin("decode_worker", message.traceparent, message.tracestate)
        if trace is None:
            return _UNTRACED
        message.traceparent = trace.traceparent
        return AnswerTrace(
            trace=trace,
            answer=answer,
            is_elsewhere=message.HasField("prefill"),
            is_fetched=message.HasField("source"),
        )

    def _pause(self, sequence: Sequence) -> None:
        self._compute.pause(sequence)
        if self._looker is None:
            self._look_later()

    def _look_later(self) -> None:
        self._looker = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        """Nothing else tells who computes that somebody has been paused for too long."""
        self._looker = None
        if self._compute.look_again():
            self._look_later()

    # -- a request ---------------------------------------------------------------------------

    def _request(self, message: pb.DecodeRequest) -> ComputeRequest:
        return compute_request_from_pb(
            message,
            hash_secret=self._secrets.hash_secret,
            model_digest=self._worker.fingerprint.model_digest,
        )

    def _admit(self, request: ComputeRequest) -> None:
        """Nothing has been executed when this raises."""
        if self.open_calls.is_draining:
            raise Draining(f"{self._worker.worker_id} is draining: decode elsewhere.")
        if self._compute.num_waiting >= self._config.max_waiting:
            raise Overloaded(f"{self._config.max_waiting} requests wait at this worker already.")
        kv = self._compute.kv
        # The last token of an answer is never computed with: it needs no slot.
        num_tokens = len(request.prompt_ids) + request.params.max_tokens - 1
        if num_tokens > kv.num_blocks * kv.block_size:
            raise InvalidRequest(
                "stop.max_tokens",
                f"A prompt of {len(request.prompt_ids)} tokens and {request.params.max_tokens} "
                f"more can never fit this worker's KV pool of {kv.num_blocks} blocks of "
                f"{kv.block_size} tokens: ask for fewer.",
            )

    def _answer(self, message: pb.DecodeRequest, request: ComputeRequest) -> OwnedAnswer:
        params = request.params
        accepted = inference_pb2.Accepted(
            request_id=request.request_id,
            model=message.model,
            decode_worker=self._worker.worker_id,
            seed=params.sampling.seed,
            prompt_tokens=len(request.prompt_ids),
        )
        return OwnedAnswer(
            request,
            new_detokenizer(self._tokenizer, params, context=request.prompt_ids),
            accepted=accepted,
            timeline=RequestTimeline(router_s=message.router_seconds),
            stalled=self._pause,
        )


def _num_emitted(request: ComputeRequest) -> list[int]:
    """By choice: how many tokens an earlier attempt has sent."""
    return [len(each) for each in request.emitted] or [0] * request.params.num_choices


def _is_uneven(request: ComputeRequest) -> bool:
    """Several choices of which an earlier attempt has sent tokens: they share no next token."""
    return request.params.num_choices > 1 and any(request.emitted)
