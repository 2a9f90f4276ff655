"""What callers are told by a server that stops: never a status that claims nothing happened."""

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.channel import open_channel
from cluster.errors import Draining, PenstockError, StreamInterrupted
from cluster.health import HealthState
from cluster.rpc import UNBOUNDED, Call, Server, service_handlers
from penstock.errors import from_rpc_error
from penstock.v1 import inference_pb2 as pb
from tests.doors import told_to_leave

INFERENCE = "penstock.v1.Inference"
WORKER = "penstock.v1.Worker"


class Calls:
    """Handlers that never end by themselves, and a wait until so many are in one."""

    def __init__(self) -> None:
        self._begun = asyncio.Semaphore(0)
        inference = {"Generate": self._generate, "Tokenize": self._never}
        self.services = [
            service_handlers(INFERENCE, inference, deadlines=UNBOUNDED),
            service_handlers(WORKER, {"Lend": self._listens}, deadlines=UNBOUNDED),
        ]

    async def begun(self, num: int) -> None:
        for _ in range(num):
            await self._begun.acquire()

    async def _generate(self, request: pb.GenerateRequest, call: Call) -> None:
        """Sends as many tokens as it is asked for, one a message, and then nothing more."""
        try:
            for _ in range(request.stop.max_tokens):
                await call.send(b"")
            await self._never()
        finally:
            call.tokens_emitted = request.stop.max_tokens  # counted at the end, as the router does

    async def _never(self, *_: Any) -> None:
        self._begun.release()
        await asyncio.Event().wait()

    async def _listens(self, call: Call) -> None:
        self._begun.release()
        while await call.receive() is not None:
            pass


def asked(num_tokens: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(stop=pb.LengthAndStop(max_tokens=num_tokens))


async def test_a_stream_with_tokens_is_interrupted_and_one_without_may_be_sent_again() -> None:
    async def last_words(num_tokens: int) -> PenstockError:
        request = asked(num_tokens)
        async with channel.stream(INFERENCE, "Generate", request, timeout_s=None) as stream:
            for _ in range(num_tokens):
                await stream.receive()
            with pytest.raises(PenstockError) as caught:
                await stream.receive()
            return caught.value

    calls = Calls()
    async with (
        Server(calls.services) as server,
        open_channel(server.address) as channel,
        asyncio.TaskGroup() as tasks,
    ):
        ends = [tasks.create_task(last_words(num)) for num in range(20)]
        await calls.begun(20)
        await server.stop()
    first, *others = [end.result() for end in ends]
    assert isinstance(first, Draining)
    assert first.retry_after_s > 0
    assert {type(error) for error in others} == {StreamInterrupted}
    assert [error.metadata["tokens_emitted"] for error in others] == list(map(str, range(1, 20)))


async def test_a_call_that_ends_within_the_grace_is_left_alone() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def answers(request: Any, call: Call) -> bytes:
        begun.set()
        await may_end.wait()
        return b""

    services = [service_handlers(INFERENCE, {"Tokenize": answers})]
    async with (
        Server(services) as server,
        open_channel(server.address) as channel,
        asyncio.TaskGroup() as tasks,
    ):
        request = pb.TokenizeRequest()
        reply = tasks.create_task(channel.unary(INFERENCE, "Tokenize", request, timeout_s=None))
        await begun.wait()
        began = time.monotonic()
        stopping = tasks.create_task(server.stop(30.0))
        await asyncio.wait({stopping}, timeout=0.1)
        may_end.set()
        await stopping
        assert time.monotonic() - began < 10.0
    assert reply.result() == pb.TokenizeResponse()


async def test_every_kind_of_call_ends_with_a_status_that_says_what_to_do() -> None:
    """Also for those who use no client of ours: the code, and the hint when to come back."""
    calls = Calls()
    async with (
        Server(calls.services, health=HealthState()) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        unary = channel.unary_unary(f"/{INFERENCE}/Tokenize")(b"")
        both = channel.stream_stream(f"/{WORKER}/Lend")()
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        await calls.begun(2)
        await server.stop()
        for end in (unary, both.read(), watch.read()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await end
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            error = from_rpc_error(caught.value)
            assert (error.reason, error.retry_after) == ("DRAINING", 1.0)


@pytest.mark.slow
async def test_who_does_not_read_keeps_nobody_else_from_being_told() -> None:
    is_flooded = asyncio.Event()

    async def floods(request: Any, call: Call) -> None:
        while True:
            is_flooded.set()
            await call.send(bytes(1 << 20))

    calls = Calls()
    services = [service_handlers(INFERENCE, {"Generate": floods}), calls.services[1]]
    async with (
        Server(services) as server,
        open_channel(server.address) as channel,
        channel.stream(INFERENCE, "Generate", asked(1), timeout_s=None),
        channel.exchange(WORKER, "Lend", timeout_s=None) as exchange,
        asyncio.TaskGroup() as tasks,
    ):
        await is_flooded.wait()
        await calls.begun(1)
        began = time.monotonic()
        stopping = tasks.create_task(server.stop())
        with pytest.raises(Draining):
            await exchange.receive()
        await stopping
        assert time.monotonic() - began < 10.0


async def test_who_trips_while_being_cut_off_is_told_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun = asyncio.Event()

    async def trips(request: Any, call: Call) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            raise ValueError("on the way out")

    async with (
        Server([service_handlers(INFERENCE, {"Generate": trips})]) as server,
        open_channel(server.address) as channel,
        channel.stream(INFERENCE, "Generate", asked(0), timeout_s=None) as stream,
    ):
        await begun.wait()
        await server.stop()
        with pytest.raises(Draining):
            await stream.receive()
    assert "internal error" not in caplog.text


class Emitting:
    """A stream of as many tokens as are let go."""

    def __init__(self) -> None:
        self.tokens = asyncio.Semaphore(0)

    async def generate(self, request: pb.GenerateRequest, call: Call) -> None:
        for number in range(request.stop.max_tokens):
            await self.tokens.acquire()
            call.tokens_emitted = number + 1
            await call.send(b"")

    @property
    def services(self) -> list[Any]:
        return [service_handlers(INFERENCE, {"Generate": self.generate, "Tokenize": _answers})]


async def _answers(request: Any, call: Call) -> bytes:
    return b""


@pytest.mark.parametrize("num_more", [3, 1], ids=["to its end", "until it is cut off"])
async def test_who_is_connected_goes_elsewhere_at_once_and_streams_go_on(num_more: int) -> None:
    """A plain client: nothing of ours repeats a call."""
    emitting = Emitting()
    async with (
        Server(emitting.services) as closing,
        Server(emitting.services) as other,
        grpc.aio.insecure_channel(f"ipv4:{closing.address},{other.address}") as channel,
        grpc.aio.insecure_channel(closing.address) as idle,
    ):
        await idle.unary_unary(f"/{INFERENCE}/Tokenize")(b"")
        stream = channel.unary_stream(f"/{INFERENCE}/Generate")(asked(4).SerializeToString())
        emitting.tokens.release()
        await stream.read()
        closing.close_door()
        for each in (channel, idle):
            await told_to_leave(each)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await idle.unary_unary(f"/{INFERENCE}/Tokenize")(b"")
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "failed to connect" in str(refused.value.details())
        for _ in range(20):
            await channel.unary_unary(f"/{INFERENCE}/Tokenize")(b"")
        for _ in range(num_more):
            emitting.tokens.release()
            assert await stream.read() == b""
        if num_more == 3:
            assert await stream.read() is grpc.aio.EOF  # type: ignore[attr-defined]
        await closing.stop()
        if num_more < 3:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            error = from_rpc_error(caught.value)
            assert error.metadata["tokens_emitted"] == str(1 + num_more)
