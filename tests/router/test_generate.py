"""Generate through a real router to fake workers: the stream, and how it ends."""

import asyncio

import grpc
import grpc.aio
import pytest

from cluster.errors import DeadlineExceeded, InvalidRequest, Overloaded
from cluster.types import Role
from penstock.v1 import inference_pb2 as pb
from tests.router.cluster_of_fakes import MODEL, Answer, Cluster, failure
from tests.router.fake_worker import Faults


def tokens(*ids: int) -> pb.TokenIds:
    return pb.TokenIds(ids=ids)


async def test_an_answer_comes_through_as_the_worker_sent_it(cluster: Cluster) -> None:
    async with cluster.worker("d0", text="é") as worker:
        await cluster.serving(worker)
        answer = await cluster.generate(text="hello", request_id="r-1", sampling={"seed": 7})
        assert answer.is_complete
        accepted = answer.messages[0].accepted
        assert (accepted.request_id, accepted.model, accepted.seed) == ("r-1", MODEL, 7)
        assert (accepted.decode_worker, accepted.prefill_worker) == ("d0", "")
        assert accepted.prompt_tokens == 5
        assert answer.token_ids == list(worker.requests[0].prompt_token_ids)
        assert [d.index for m in answer.messages for d in m.deltas] == [0, 1, 2, 3, 4]
        sent = worker.requests[0]
        assert (sent.tenant, sent.params.max_tokens) == ("default", 512 - 5)
        assert 0 < sent.router_seconds < 5
        assert worker.remaining_s is not None
        assert 5 < worker.remaining_s < 11


async def test_chat_and_token_ids_reach_the_worker_as_ids(cluster: Cluster) -> None:
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")])
        await cluster.generate(chat=chat)
        ids = list(worker.requests[0].prompt_token_ids)
        text = await cluster.inference.Detokenize(pb.DetokenizeRequest(token_ids=ids))
        assert text.text == "user:hi;"
        await cluster.generate(token_ids=tokens(3, 2, 1))
        assert list(worker.requests[1].prompt_token_ids) == [3, 2, 1]


async def test_a_request_id_may_come_in_metadata_and_is_made_up_otherwise(
    cluster: Cluster,
) -> None:
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        given = await cluster.generate(text="x", metadata=(("x-request-id", "from-metadata"),))
        assert given.messages[0].accepted.request_id == "from-metadata"
        assert given.initial["x-request-id"] == "from-metadata"
        first, second = [await cluster.generate(text="x") for _ in range(2)]
        ids = {answer.messages[0].accepted.request_id for answer in (first, second)}
        assert len(ids) == 2
        assert "" not in ids
        seeds = {answer.messages[0].accepted.seed for answer in (first, second)}
        assert len(seeds) == 2


async def test_a_long_prompt_is_handed_to_a_prefill_worker(cluster: Cluster) -> None:
    async with cluster.worker("d0") as decode, cluster.worker("p0", Role.PREFILL) as prefill:
        await cluster.serving(decode, prefill)
        decode.report(num_running=600)
        await cluster.until(lambda: num_running(cluster) == 600)
        answer = await cluster.generate(token_ids=tokens(*[1] * 400))
        assert answer.messages[0].accepted.prefill_worker == "p0"
        named = decode.requests[0].prefill
        assert (named.worker_id, named.incarnation) == ("p0", prefill.incarnation)
        assert not named.HasField("fingerprint")  # members know it
        assert not named.address
        decode.report(num_running=1)
        await cluster.until(lambda: num_running(cluster) == 1)
        short = await cluster.generate(token_ids=tokens(1))
        assert short.messages[0].accepted.prefill_worker == ""


async def test_a_cancelled_call_is_cancelled_at_the_worker(cluster: Cluster) -> None:
    async with cluster.worker("d0", faults=Faults(stall_after=1)) as worker:
        await cluster.serving(worker)
        call = cluster.inference.Generate(pb.GenerateRequest(text="hello"))
        await call.read()
        call.cancel()
        async with asyncio.timeout(5):
            await worker.cancelled.wait()
        await cluster.until(lambda: cluster.router.admission.num_in_flight == 0)


async def test_a_client_that_goes_away_cancels_what_waits(cluster: Cluster) -> None:
    async with cluster.worker("d0", faults=Faults(stall_after=0)) as worker:
        await cluster.serving(worker)
        channel = grpc.aio.insecure_channel(
            cluster.address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        call = channel.unary_stream("/penstock.v1.Inference/Generate")(
            pb.GenerateRequest(text="hello").SerializeToString()
        )
        async with asyncio.timeout(5):
            await worker.served.wait()
            await channel.close()
            await worker.cancelled.wait()
        assert call.done()


async def test_a_worker_that_dies_before_it_speaks_is_replaced(cluster: Cluster) -> None:
    request = pb.GenerateRequest(text="hello", request_id="r")
    async with cluster.worker("d0") as d0, cluster.worker("d1") as d1:
        await cluster.serving(d0, d1)
        d0.report(num_waiting=50, num_queued_tokens=10**6)  # so that d1 is chosen
        await cluster.until(lambda: _queue(cluster, "d0") > 0)
        d1.faults = Faults(fail_after=0)
        answer = await cluster.generate(request)
        assert answer.is_complete
        assert answer.messages[0].accepted.decode_worker == "d0"
        first, second = d1.requests[0], d0.requests[0]
        assert first.request_id == second.request_id == "r"
        assert first.params.seed == second.params.seed


def num_running(cluster: Cluster) -> float:
    snapshot = cluster.router.pool.snapshot(cluster.router.clock())
    return sum(load.num_running for load in snapshot.decode)


def _queue(cluster: Cluster, name: str) -> int:
    snapshot = cluster.router.pool.snapshot(cluster.router.clock())
    return sum(load.num_prefill_tokens for load in snapshot.decode if load.worker == name)


async def test_a_worker_that_dies_after_tokens_ends_the_stream_with_their_number(
    cluster: Cluster,
) -> None:
    async with cluster.worker("d0", faults=Faults(fail_after=3)) as worker:
        await cluster.serving(worker)
        answer = Answer()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.generate(text="hello", answer=answer)
        failed = failure(caught.value)
        assert (failed.code, failed.reason) == (grpc.StatusCode.ABORTED, "STREAM_INTERRUPTED")
        assert failed.metadata["tokens_emitted"] == "3"
        assert len(answer.token_ids) == 3
        assert not answer.is_complete


async def test_a_stream_without_its_last_message_is_no_answer(cluster: Cluster) -> None:
    async with cluster.worker("d0", faults=Faults(end_after=2)) as worker:
        await cluster.serving(worker)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.generate(text="hello")
        failed = failure(caught.value)
        assert failed.code is grpc.StatusCode.ABORTED
        assert failed.metadata["tokens_emitted"] == "2"


async def test_a_failure_after_the_last_message_takes_nothing_back(cluster: Cluster) -> None:
    async with cluster.worker("d0", faults=Faults(raise_after=(5, Overloaded("Late.")))) as worker:
        await cluster.serving(worker)
        assert (await cluster.generate(text="hello")).is_complete


@pytest.mark.slow
async def test_a_client_that_does_not_read_holds_the_worker_back(cluster: Cluster) -> None:
    """Neither memory of the router nor the worker's lead grows beyond what gRPC buffers."""
    async with cluster.worker("d0", text="x" * 100_000) as worker:
        await cluster.serving(worker)
        call = cluster.inference.Generate(pb.GenerateRequest(token_ids=tokens(*[1] * 500)))
        await call.read()
        lead, num_others = -1, 0
        while lead != (lead := worker.num_sent - num_others):  # until it is held
            for _ in range(20):
                assert (await cluster.generate(text="x")).is_complete  # others are served
                num_others += 1
        assert lead < 400
        call.cancel()


async def test_what_a_worker_says_of_a_request_is_passed_on(cluster: Cluster) -> None:
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        worker.faults = Faults(refuse=InvalidRequest("stop.max_tokens", "Too many for me."))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.generate(text="hello")
        failed = failure(caught.value)
        assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
        assert (failed.fields, failed.message) == (("stop.max_tokens",), "Too many for me.")
        worker.faults = Faults(raise_after=(2, DeadlineExceeded("decode", tokens_emitted=2)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.generate(text="hello")
        failed = failure(caught.value)
        assert failed.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert failed.metadata == {"phase": "decode", "tokens_emitted": "2"}
        assert len(worker.requests) == 2  # neither was tried again


async def test_a_full_worker_is_passed_over_and_its_hint_kept_if_all_are(cluster: Cluster) -> None:
    full = Faults(refuse=Overloaded("Full.", retry_after_s=2.5))
    async with cluster.worker("d0", faults=full) as d0, cluster.worker("d1") as d1:
        await cluster.serving(d0, d1)
        for _ in range(4):
            assert (await cluster.generate(text="hello")).is_complete
        assert d0.requests
        d1.faults = full
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.generate(text="hello")
        failed = failure(caught.value)
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
        assert failed.retry_after_s == 2.5


async def test_the_deadline_ends_a_call_in_the_phase_that_it_was_in(cluster: Cluster) -> None:
    async with cluster.worker("d0", faults=Faults(stall_after=2)) as worker:
        await cluster.serving(worker)
        answer = Answer()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.generate(text="hello", answer=answer, timeout_s=0.4)
        failed = failure(caught.value)
        assert failed.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert failed.metadata.get("tokens_emitted") in ("2", None)  # None: gRPC's own timer won
        assert len(answer.token_ids) == 2
        async with asyncio.timeout(5):
            await worker.cancelled.wait()


async def test_the_same_id_twice_at_once_is_refused(cluster: Cluster) -> None:
    async with cluster.worker("d0", faults=Faults(stall_after=1)) as worker:
        await cluster.serving(worker)
        first = cluster.inference.Generate(pb.GenerateRequest(text="hello", request_id="r"))
        await first.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.generate(text="hello", request_id="r")
        assert failure(caught.value).code is grpc.StatusCode.ALREADY_EXISTS
        first.cancel()
        await cluster.until(lambda: cluster.router.admission.num_in_flight == 0)
        worker.faults = Faults()
        assert (await cluster.generate(text="hello", request_id="r")).is_complete


async def test_many_at_once_all_end_and_nothing_stays_booked(cluster: Cluster) -> None:
    async with cluster.worker("d0") as d0, cluster.worker("d1") as d1:
        await cluster.serving(d0, d1)
        answers = await asyncio.gather(*(cluster.generate(text="hello") for _ in range(50)))
        assert all(answer.is_complete for answer in answers)
        assert len(d0.requests) + len(d1.requests) == 50
        assert min(len(d0.requests), len(d1.requests)) >= 10  # a burst does not herd
