"""However a request ends, in whatever phase: blocks come back, and the stream tells the truth."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from cluster.worker_codec import address_to_pb
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc, worker_pb2
from tests.kv_transfer.faulty_transport import Fault, FaultPlan, FaultyTransport
from tests.router.cluster_of_fakes import Answer, failure
from tests.workers.answers import expected, greedy, prompt_of
from tests.workers.decoding import PROMPT, continuation, decode
from tests.workers.local_cluster import LocalCluster, Running

pytestmark = pytest.mark.slow

PHASES = ["queue", "prefill", "transfer", "decode"]


def gated(checkpoint: Path, tmp_path: Path, **settings: Any) -> LocalCluster:
    return LocalCluster(
        checkpoint,
        tmp_path,
        disaggregate="always",
        **{"prefill": [{"max_sequences": 1}], "wrap_transport": FaultyTransport, **settings},
    )


async def reach(cluster: LocalCluster, phase: str) -> Callable[[], None]:
    """Arranges that the next request stops in `phase`; returns how to go on."""
    gate, transport = cluster.prefill[0].gate, cluster.prefill[0].transport
    match phase:
        case "queue":
            gate.close()
            call = asyncio.create_task(cluster.generate(greedy([9, 9, 9], 2)))
            await asyncio.to_thread(gate.reached.wait, 10)
            cluster.decode[0].blocker = call
            return gate.open
        case "prefill":
            gate.close()
            return gate.open
        case "transfer":
            transport.close_gate()
            return transport.open_gate
        case _:
            return cluster.decode[0].gate.open


async def wait_for(cluster: LocalCluster, phase: str, answer: Answer) -> None:
    prefill, decode = cluster.prefill[0], cluster.decode[0]
    match phase:
        case "queue":
            await cluster.until(lambda: len(prefill.worker.scheduler.batcher.waiting) == 1)
        case "prefill":
            await asyncio.to_thread(prefill.gate.reached.wait, 10)
        case "transfer":
            await asyncio.to_thread(prefill.transport.held.wait, 10)
            await cluster.until(lambda: bool(answer.messages))
        case _:
            await cluster.until(lambda: bool(decode.worker.scheduler.batcher.running))
            decode.gate.close()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("way", ["cancel", "deadline", "death"])
@pytest.mark.slow
async def test_blocks_return_when_the_client_leaves(
    checkpoint: Path, tmp_path: Path, phase: str, way: str
) -> None:
    async with gated(checkpoint, tmp_path) as cluster:
        go_on = await reach(cluster, phase)
        answer = Answer()
        channel = grpc.aio.insecure_channel(
            cluster.address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        timeout_s = 1.0 if way == "deadline" else 20.0
        request = greedy(PROMPT, 400)
        call = inference_pb2_grpc.InferenceStub(channel).Generate(request, timeout=timeout_s)

        async def read() -> None:
            async for message in call:
                answer.messages.append(message)

        reading = asyncio.create_task(read())
        await wait_for(cluster, phase, answer)
        match way:
            case "cancel":
                call.cancel()
            case "death":
                await channel.close()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)) as caught:
            await reading
        if way == "deadline" and isinstance(caught.value, grpc.aio.AioRpcError):
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await cluster.until(lambda: cluster.router.admission.num_in_flight <= (phase == "queue"))
        go_on()
        await channel.close()
        if phase == "queue":
            blocked = await cluster.decode[0].blocker
            assert blocked.token_ids == expected([9, 9, 9], 2)
        await asyncio.wait_for(cluster.idle(), 1.0)
        assert not answer.is_complete


async def test_the_first_token_does_not_wait_for_the_kv(checkpoint: Path, tmp_path: Path) -> None:
    async with gated(checkpoint, tmp_path) as cluster:
        transport = cluster.prefill[0].transport
        transport.close_gate()
        answer = Answer()
        task = asyncio.create_task(cluster.generate(greedy(PROMPT, 5), answer=answer))
        await cluster.until(lambda: bool(answer.messages))
        assert answer.messages[0].HasField("accepted")
        assert answer.token_ids == expected(PROMPT, 1)
        transport.open_gate()
        await task
        assert answer.token_ids == expected(PROMPT, 5)
        timeline = answer.messages[-1].finished.timeline
        assert timeline.transfer_visible_seconds > 0


@pytest.mark.parametrize("phase", ["prefill", "transfer"])
async def test_a_prefill_worker_that_dies_costs_time_and_not_the_answer(
    checkpoint: Path, tmp_path: Path, phase: str
) -> None:
    async with gated(checkpoint, tmp_path) as cluster:
        go_on = await reach(cluster, phase)
        answer = Answer()
        task = asyncio.create_task(cluster.generate(greedy(PROMPT, 8), answer=answer))
        await wait_for(cluster, phase, answer)
        dead = cluster.prefill[0]
        dead.task.cancel()
        cluster.network.kill(dead.worker.member.worker.incarnation)
        await task
        assert answer.token_ids == expected(PROMPT, 8)
        assert answer.messages[-1].finished.timeline.recomputes == 1
        go_on()
        cluster.prefill.clear()


async def test_a_hand_over_that_fails_is_computed_here_after_what_was_sent(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with gated(checkpoint, tmp_path) as cluster:
        cluster.prefill[0].transport.failure = OSError("the wire is cut")
        answer = await cluster.generate(greedy(PROMPT, 8))
        assert answer.token_ids == expected(PROMPT, 8)
        assert answer.messages[-1].finished.timeline.recomputes == 1
        cluster.prefill[0].transport.failure = None


async def test_a_corrupted_hand_over_is_caught_and_computed_here(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with gated(checkpoint, tmp_path) as cluster:
        cluster.disturb("prefill-0", "decode-0", FaultPlan(shares={Fault.CORRUPT: 1}))
        answer = await cluster.generate(greedy(PROMPT, 8))
        assert answer.token_ids == expected(PROMPT, 8)
        assert answer.messages[-1].finished.timeline.recomputes == 1
        counters = cluster.decode[0].counters
        assert counters["transfer_failures.written.digest"] == 1
        cluster.disturb("prefill-0", "decode-0", FaultPlan())
        answer = await cluster.generate(greedy(prompt_of(2, 50), 8))
        assert answer.token_ids == expected(prompt_of(2, 50), 8)
        assert answer.messages[-1].finished.timeline.recomputes == 0


async def test_an_engine_that_fails_costs_a_batch_and_not_the_worker(
    checkpoint: Path, tmp_path: Path
) -> None:
    cluster = LocalCluster(checkpoint, tmp_path, prefill=[], disaggregate="never")
    async with cluster:
        engine = cluster.decode[0].worker.thread._engine
        forward, engine.forward = engine.forward, lambda *_: 1 / 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.generate(greedy(PROMPT, 8))
        assert failure(caught.value).code is grpc.StatusCode.INTERNAL
        assert "division" not in failure(caught.value).message
        engine.forward = forward
        assert (await cluster.generate(greedy(PROMPT, 8))).token_ids == expected(PROMPT, 8)


async def test_a_stalled_reader_neither_slows_others_nor_grows_memory(
    checkpoint: Path, tmp_path: Path
) -> None:
    cluster = LocalCluster(
        checkpoint, tmp_path, decode=[{"num_blocks": 64}], prefill=[], disaggregate="never"
    )
    async with cluster:
        worker = cluster.decode[0].worker
        answers = []
        made = worker.service._answer
        worker.service._answer = lambda *a: answers.append(made(*a)) or answers[-1]
        stalled = asyncio.Event()

        async def never(message: object) -> None:
            await stalled.wait()

        relay = worker.service._relay

        class Deaf:
            """A call whose client does not read."""

            phase = ""
            tokens_emitted = 0
            send = staticmethod(never)

        worker.service._relay = lambda answer, call: relay(answer, Deaf())
        task = asyncio.create_task(cluster.generate(greedy(PROMPT, 440)))
        await cluster.until(lambda: bool(worker.scheduler.batcher.paused))
        worker.service._relay = relay
        other = await cluster.generate(greedy([1, 2, 3], 20))
        assert other.token_ids == expected([1, 2, 3], 20)
        assert answers[0].num_unsent <= 260
        stalled.set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_drained_worker_ends_what_it_has_and_takes_no_more(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}], prefill=[]) as cluster:
        for running in cluster.decode:
            running.gate.close()
        answer = Answer()
        task = asyncio.create_task(cluster.generate(greedy(PROMPT, 8), answer=answer))
        await cluster.until(lambda: any(r.worker.service.open_calls.num for r in cluster.decode))
        busy = next(r for r in cluster.decode if r.worker.service.open_calls.num)
        busy.drain.set()
        await cluster.until(
            lambda: len(cluster.router.pool.snapshot(cluster.router.clock()).decode) == 1
        )
        for running in cluster.decode:
            running.gate.open()
        await task
        assert answer.token_ids == expected(PROMPT, 8)
        await busy.task
        other = await cluster.generate(greedy(PROMPT, 8))
        assert other.messages[0].accepted.decode_worker != busy.name
        cluster.decode.remove(busy)


async def test_a_request_that_can_never_fit_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    cluster = LocalCluster(checkpoint, tmp_path, decode=[{"num_blocks": 8}], prefill=[])
    async with cluster:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.generate(greedy(PROMPT, 200))
        refused = failure(caught.value)
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.fields == ("stop.max_tokens",)
        assert (await cluster.generate(greedy(PROMPT, 8))).is_complete


@pytest.mark.parametrize("n", [1, 3])
async def test_an_answer_goes_on_at_another_decode_worker(
    checkpoint: Path, tmp_path: Path, n: int
) -> None:
    async with LocalCluster(checkpoint, tmp_path, decode=[{}, {}]) as cluster:
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=PROMPT),
            sampling=pb.SamplingParams(temperature=1.0, seed=9),
            stop=pb.LengthAndStop(max_tokens=60, ignore_eos=True),
            n=n,
        )
        answer = Answer()
        task = asyncio.create_task(cluster.generate(request, answer=answer))
        await cluster.until(lambda: len(answer.messages) > 3)
        first = answer.messages[0].accepted.decode_worker
        busy = next(running for running in cluster.decode if running.name == first)
        busy.task.cancel()
        cluster.network.kill(busy.worker.member.worker.incarnation)
        await task
        for choice in range(n):
            deltas = [d for m in answer.messages for d in m.deltas if d.choice == choice]
            ids = [i for delta in deltas for i in delta.token_ids]
            assert ids == expected(PROMPT, 60, seed=9, temperature=1.0, choice=choice)
            assert [d.index for d in deltas] == sorted({d.index for d in deltas})
        assert [m.HasField("accepted") for m in answer.messages].count(True) == 1
        assert answer.messages[-1].finished.usage.completion_tokens == 60 * n
        cluster.decode.remove(busy)


async def test_a_continuation_with_nothing_left_only_says_how_it_ended(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, prefill=[]) as cluster:
        whole = expected(PROMPT, 5)
        request = continuation(whole, max_tokens=5)
        messages = await decode(cluster.decode[0], request)
        assert len(messages) == 1
        assert not messages[0].deltas
        assert messages[0].finished.choices[0].reason == pb.FINISH_REASON_LENGTH
        assert messages[0].finished.usage.completion_tokens == 5


async def test_prompts_that_wait_for_one_decode_worker_do_not_hold_up_those_for_another(
    checkpoint: Path, tmp_path: Path
) -> None:
    cluster = LocalCluster(
        checkpoint,
        tmp_path,
        decode=[{"num_blocks": 8}, {"num_blocks": 64}],
        prefill=[{"num_blocks": 16, "watermark": 0.0}],
    )
    async with cluster:
        full, free = cluster.decode
        prefill = cluster.prefill[0]
        address = address_to_pb(replace(prefill.worker.member.worker, address=prefill.address))

        def ask(running: Running, number: int, **where: Any) -> asyncio.Task[list[int]]:
            prompt = prompt_of(number, 100 if running is full else 60)
            request = continuation([], prompt=prompt, max_tokens=5, **where)
            return asyncio.create_task(decode_ids(running, request))

        full.gate.close()
        tasks = [ask(full, 0)]
        await asyncio.to_thread(full.gate.reached.wait, 10)
        tasks += [ask(full, number, prefill=address) for number in (1, 2)]
        await cluster.until(lambda: len(prefill.worker.scheduler._handing_over) == 2)
        async with asyncio.timeout(5):
            assert await ask(free, 3, prefill=address) == expected(prompt_of(3, 60), 5)
        full.gate.open()
        for number, task in enumerate(tasks):
            assert await task == expected(prompt_of(number, 100), 5)


async def decode_ids(running: Running, request: worker_pb2.DecodeRequest) -> list[int]:
    messages = await decode(running, request)
    return [i for m in messages for d in m.deltas for i in d.token_ids]


async def test_an_answer_goes_on_after_what_an_earlier_attempt_sent(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with LocalCluster(checkpoint, tmp_path, prefill=[]) as cluster:
        whole = expected(PROMPT, 12, seed=5, temperature=1.0)
        request = continuation(whole[:5], temperature=1.0, seed=5, max_tokens=12)
        messages = await decode(cluster.decode[0], request)
        ids = [i for m in messages for d in m.deltas for i in d.token_ids]
        assert ids == whole[5:]
        assert messages[0].deltas[0].index == 5
        assert messages[-1].finished.usage.completion_tokens == 12
