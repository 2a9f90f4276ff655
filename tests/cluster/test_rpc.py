"""What a client of any of our servers notices: statuses, details, deadlines, the token."""

import asyncio
import logging
import random
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from cluster.channel import Channel, Options, channel_options, open_channel
from cluster.door import door_service
from cluster.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    StartupError,
    Unauthenticated,
    UnsupportedFeature,
    WorkerLost,
)
from cluster.open_calls import OpenCalls
from cluster.proof import Doorkeeper
from cluster.rpc import UNBOUNDED, Call, Deadlines, Server, server_options, service_handlers
from penstock.v1 import inference_pb2, worker_pb2

INFERENCE = "penstock.v1.Inference"
WORKER = "penstock.v1.Worker"


def inference(**handlers: Any) -> list[Any]:
    return [service_handlers(INFERENCE, handlers)]


def guarded(**handlers: Any) -> list[Any]:
    door = Doorkeeper("the-token")
    return [service_handlers(INFERENCE, handlers, door=door), door_service(door)]


async def tokenize(request: Any, call: Call) -> inference_pb2.TokenizeResponse:
    return inference_pb2.TokenizeResponse(token_ids=[len(request.text)])


def details(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
    return status_pb2.Status.FromString(packed)


async def test_a_unary_call_is_answered():
    async with Server(inference(Tokenize=tokenize)) as server, open_channel(server.address) as c:
        request = inference_pb2.TokenizeRequest(text="four")
        response = await c.unary(INFERENCE, "Tokenize", request, timeout_s=5)
    assert list(response.token_ids) == [4]


async def test_malformed_bytes_are_refused_as_the_callers_fault_with_the_field():
    async with (
        Server(inference(Tokenize=tokenize)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(f"/{INFERENCE}/Tokenize")(b"\xff\xff\xff")
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violation = error_details_pb2.BadRequest()
    assert any(detail.Unpack(violation) for detail in details(raised.value).details)
    assert violation.field_violations[0].field == "request"


async def test_malformed_bytes_in_a_client_stream_are_refused_too():
    async def lend(call: Call) -> None:
        await call.receive()

    services = [service_handlers(WORKER, {"Lend": lend})]
    async with (
        Server(services) as server,
        open_channel(server.address) as channel,
        channel.exchange(WORKER, "Lend", timeout_s=5) as exchange,
    ):
        await exchange.send(b"\xff\xff\xff")
        with pytest.raises(InvalidRequest):
            await exchange.receive()


async def test_a_stream_arrives_message_by_message_as_messages_or_as_bytes():
    received = asyncio.Event()

    async def generate(request: Any, call: Call) -> None:
        await call.send(inference_pb2.GenerateResponse(deltas=[{"text": request.text}]))
        await received.wait()
        await call.send(b"")

    request = inference_pb2.GenerateRequest(text="one")
    async with Server(inference(Generate=generate)) as server, open_channel(server.address) as c:
        async with c.stream(INFERENCE, "Generate", request, timeout_s=5) as stream:
            first = await stream.receive()
            received.set()
            rest = [message async for message in stream]
        async with c.stream(INFERENCE, "Generate", request, timeout_s=5, is_raw=True) as stream:
            raw = [message async for message in stream]
    assert first.deltas[0].text == "one"
    assert rest == [inference_pb2.GenerateResponse()]
    assert raw == [first.SerializeToString(), b""]


async def test_both_sides_of_an_exchange_stream():
    async def lend(call: Call) -> None:
        while (request := await call.receive()) is not None:
            found = {"num_tokens": request.start.probe_tokens}
            await call.send(worker_pb2.LendResponse(found=found))

    services = [service_handlers(WORKER, {"Lend": lend})]
    async with (
        Server(services) as server,
        open_channel(server.address) as channel,
        channel.exchange(WORKER, "Lend", timeout_s=5) as exchange,
    ):
        echoed = []
        for count in (1, 2):
            start = {"probe_tokens": count}
            await exchange.send(worker_pb2.LendRequest(start=start))
            echoed.append((await exchange.receive()).found.num_tokens)
        await exchange._call.done_writing()  # as other clients may end theirs
        assert await exchange.receive() is None
    assert echoed == [1, 2]


async def test_an_rpc_without_a_coroutine_is_unimplemented_by_name():
    async with Server(inference()) as server, open_channel(server.address) as channel:
        with pytest.raises(UnsupportedFeature, match="Inference/Route"):
            await channel.unary(INFERENCE, "Route", inference_pb2.RouteRequest(), timeout_s=5)


def test_a_coroutine_for_no_rpc_is_refused_at_once():
    with pytest.raises(ValueError, match="Tokenise"):
        service_handlers(INFERENCE, {"Tokenise": tokenize})


async def test_a_bug_ends_with_an_id_that_the_log_has_and_without_a_stack_trace(caplog):
    async def broken(request: Any, call: Call) -> None:
        raise KeyError("a secret detail")

    async with Server(inference(Tokenize=broken)) as server, open_channel(server.address) as c:
        with pytest.raises(InternalError) as raised:
            await c.unary(INFERENCE, "Tokenize", inference_pb2.TokenizeRequest(), timeout_s=5)
    assert "secret" not in str(raised.value)
    assert raised.value.error_id in caplog.text
    assert "a secret detail" in caplog.text


async def test_an_error_of_a_task_group_ends_the_call_as_itself():
    async def grouped(request: Any, call: Call) -> None:
        async def refuse() -> None:
            raise InvalidRequest("text", "It must not be empty.")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refuse())

    async with Server(inference(Tokenize=grouped)) as server, open_channel(server.address) as c:
        with pytest.raises(InvalidRequest) as raised:
            await c.unary(INFERENCE, "Tokenize", inference_pb2.TokenizeRequest(), timeout_s=5)
    assert raised.value.field == "text"


async def test_a_bug_beside_another_error_of_a_task_group_is_not_hidden_by_it(caplog):
    async def grouped(request: Any, call: Call) -> None:
        raise ExceptionGroup("two", [InvalidRequest("text", "Empty."), KeyError("a bug")])

    async with Server(inference(Tokenize=grouped)) as server, open_channel(server.address) as c:
        with pytest.raises(InternalError):
            await c.unary(INFERENCE, "Tokenize", inference_pb2.TokenizeRequest(), timeout_s=5)
    assert "a bug" in caplog.text


@pytest.mark.parametrize("opens_with", ["a message", "metadata", "metadata and a message"])
async def test_who_fails_while_its_first_words_are_on_their_way_still_says_why(opens_with):
    """gRPC would send what opens the call twice, refuse to, and leave the client without a word."""

    async def lend(call: Call) -> None:
        async def speak() -> None:
            if "metadata" in opens_with:
                await call.send_metadata(("who", "me"))
            if "message" in opens_with:
                await call.send(worker_pb2.LendResponse())

        async def refuse() -> None:
            await call.receive()
            raise InvalidRequest("start", "There is none.")

        num_turns = (await call.receive()).start.probe_tokens
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refuse())
            for _ in range(num_turns):
                await asyncio.sleep(0)  # so that it comes before, amid and after them
            tasks.create_task(speak())

    async def is_heard(message: Any) -> None: ...

    services = [service_handlers(WORKER, {"Lend": lend})]
    async with Server(services) as server, open_channel(server.address) as channel:
        for num_turns in range(1, 40):
            async with channel.exchange(WORKER, "Lend", timeout_s=5) as exchange:
                await exchange.send(
                    worker_pb2.LendRequest(start=worker_pb2.LendStart(probe_tokens=num_turns))
                )
                await exchange.send(worker_pb2.LendRequest())
                with pytest.raises(InvalidRequest, match="There is none"):
                    await exchange.pass_to(is_heard)


async def test_who_goes_on_sending_to_an_ended_call_is_told_why_it_ended():
    async def lend(call: Call) -> None:
        raise InvalidRequest("start", "There is none.")

    services = [service_handlers(WORKER, {"Lend": lend})]
    async with (
        Server(services) as server,
        open_channel(server.address) as channel,
        channel.exchange(WORKER, "Lend", timeout_s=5) as exchange,
    ):
        with pytest.raises(InvalidRequest):
            await exchange.receive()
        with pytest.raises(InvalidRequest, match="There is none"):
            await exchange.send(b"")


async def test_who_is_still_sending_when_its_call_is_refused_is_told_why():
    """gRPC's own `write` would leave INTERNAL in the place of the true status, for readers too."""

    async def lend(call: Call) -> None:
        raise InvalidRequest("start", "There is none.")

    services = [service_handlers(WORKER, {"Lend": lend})]
    async with Server(services) as server, open_channel(server.address) as channel:
        for _ in range(40):
            async with channel.exchange(WORKER, "Lend", timeout_s=5) as exchange:
                reading = asyncio.create_task(exchange.receive())
                for _ in range(3):
                    try:
                        await exchange.send(worker_pb2.LendRequest())
                    except InvalidRequest:
                        break
                with pytest.raises(InvalidRequest, match="There is none"):
                    await reading


async def test_a_cancelled_part_of_a_call_that_nobody_cancelled_does_not_hang_the_client(caplog):
    async def broken(request: Any, call: Call) -> None:
        raise asyncio.CancelledError

    async with Server(inference(Tokenize=broken)) as server, open_channel(server.address) as c:
        with pytest.raises(InternalError):
            await c.unary(INFERENCE, "Tokenize", inference_pb2.TokenizeRequest(), timeout_s=5)


async def test_leaving_the_scope_of_a_call_cancels_its_handler():
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def generate(request: Any, call: Call) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    request = inference_pb2.GenerateRequest()
    async with Server(inference(Generate=generate)) as server, open_channel(server.address) as c:
        async with c.stream(INFERENCE, "Generate", request, timeout_s=None):
            await started.wait()
        await asyncio.wait_for(cancelled.wait(), 5)


@pytest.mark.parametrize(
    ("asked_s", "default_s"),
    [(None, 0.2), pytest.param(0.2, 60.0, marks=pytest.mark.alone)],  # not after the client's timer
    ids=["the server's", "the client's"],
)
async def test_a_passed_deadline_says_in_which_phase_and_after_how_many_tokens(asked_s, default_s):
    async def generate(request: Any, call: Call) -> None:
        call.phase, call.tokens_emitted = "decode", 3
        await asyncio.Event().wait()

    request = inference_pb2.GenerateRequest()
    deadlines = Deadlines(default_s=default_s)
    services = [service_handlers(INFERENCE, {"Generate": generate}, deadlines=deadlines)]
    async with (
        Server(services) as server,
        open_channel(server.address) as c,
        c.stream(INFERENCE, "Generate", request, timeout_s=asked_s) as stream,
    ):
        with pytest.raises(DeadlineExceeded) as raised:
            await stream.receive()
    assert raised.value.metadata == {"phase": "decode", "tokens_emitted": "3"}


@pytest.mark.parametrize(
    ("asked_s", "deadlines", "expected_s"),
    [
        (None, Deadlines(), 300),
        (100, Deadlines(), 100),
        (7200, Deadlines(), 3600),
        (None, Deadlines(default_s=20), 20),
        (7200, UNBOUNDED, 7200),
    ],
)
async def test_the_deadline_is_the_clients_within_the_servers_bounds(
    asked_s, deadlines, expected_s
):
    seen: list[float | None] = []

    async def remember(request: Any, call: Call) -> bytes:
        seen.append(call.remaining_s)
        return b""

    services = [service_handlers(INFERENCE, {"Tokenize": remember}, deadlines=deadlines)]
    request = inference_pb2.TokenizeRequest()
    async with Server(services) as server, open_channel(server.address) as channel:
        await channel.unary(INFERENCE, "Tokenize", request, timeout_s=asked_s)
    assert seen[0] == pytest.approx(expected_s, rel=0.01)  # it travels in three digits


async def test_a_stream_that_lives_with_its_peer_has_no_deadline():
    seen: list[float | None] = []

    async def remember(request: Any, call: Call) -> bytes:
        seen.append(call.remaining_s)
        return b""

    services = [service_handlers(INFERENCE, {"Tokenize": remember}, deadlines=UNBOUNDED)]
    request = inference_pb2.TokenizeRequest()
    async with Server(services) as server, open_channel(server.address) as channel:
        await channel.unary(INFERENCE, "Tokenize", request, timeout_s=None)
    assert seen == [None]


@pytest.mark.parametrize("token", [None, "", "another"])
async def test_an_internal_call_without_the_cluster_token_is_refused(token):
    services = guarded(Tokenize=tokenize)
    request = inference_pb2.TokenizeRequest()
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    async with Server(services) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = channel.unary_unary(f"/{INFERENCE}/Tokenize")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call(request.SerializeToString(), metadata=metadata)
        async with open_channel(server.address, "the-token") as channel:
            await channel.unary(INFERENCE, "Tokenize", request, timeout_s=5)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_wrong_token_is_a_typed_error_of_the_client():
    services = guarded(Tokenize=tokenize)
    request = inference_pb2.TokenizeRequest()
    async with Server(services) as server, open_channel(server.address, "wrong") as channel:
        with pytest.raises(Unauthenticated):
            await channel.unary(INFERENCE, "Tokenize", request, timeout_s=5)


async def test_a_message_over_the_limit_is_refused_and_the_server_goes_on():
    services = inference(Tokenize=tokenize)
    async with (
        Server(services, max_receive_bytes=1000) as server,
        open_channel(server.address) as c,
    ):
        big = inference_pb2.TokenizeRequest(text="x" * 2000)
        with pytest.raises(InvalidRequest, match="larger than max"):
            await c.unary(INFERENCE, "Tokenize", big, timeout_s=5)
        small = inference_pb2.TokenizeRequest(text="x")
        assert (await c.unary(INFERENCE, "Tokenize", small, timeout_s=5)).token_ids == [1]


async def test_a_peer_that_is_gone_is_a_lost_worker():
    async with Server(inference(Tokenize=tokenize)) as server:
        pass
    async with open_channel(server.address) as channel:
        with pytest.raises(WorkerLost):
            await channel.unary(INFERENCE, "Tokenize", inference_pb2.TokenizeRequest(), timeout_s=5)


async def test_a_taken_port_is_refused_with_a_sentence():
    async with Server(inference()) as server:
        with pytest.raises(StartupError, match="port taken"):
            await Server(inference(), address=server.address).start()


async def test_reflection_lists_what_is_served():
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    from cluster.health import HealthState

    async with (
        Server(inference(), health=HealthState()) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = (await call.read()).list_services_response.service
        call.cancel()
    assert {service.name for service in listed} == {
        INFERENCE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


class Silence:
    """A server that says nothing on a call until it is told to, and one client's call to it."""

    def __init__(self, server_arguments: Options, channel_arguments: Options) -> None:
        async def generate(request: Any, call: Call) -> None:
            await self.end.wait()

        self.end = asyncio.Event()
        services = [service_handlers(INFERENCE, {"Generate": generate}, deadlines=UNBOUNDED)]
        self._server = Server(services, options=server_arguments)
        self._channel_arguments = channel_arguments

    async def code(self) -> grpc.StatusCode:
        async with (
            self._server as server,
            grpc.aio.insecure_channel(server.address, options=self._channel_arguments) as channel,
        ):
            call = channel.unary_stream(f"/{INFERENCE}/Generate")(b"")
            code: grpc.StatusCode = await call.code()
            return code


@pytest.mark.prove
async def test_a_silent_call_outlives_pings_that_a_server_with_default_arguments_does_not_bear():
    # One a second is as often as gRPC pings; the third unwelcome one is the last.
    pinging = list((dict(channel_options()) | {"grpc.keepalive_time_ms": 1_000}).items())
    ours, default = Silence(server_options(), pinging), Silence([], pinging)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        ours_ends = tasks.create_task(ours.code())
        assert await default.code() is grpc.StatusCode.UNAVAILABLE
        assert not ours_ends.done()
        ours.end.set()
    assert ours_ends.result() is grpc.StatusCode.OK


@pytest.mark.prove
@pytest.mark.timeout(700)
async def test_a_call_of_ten_silent_minutes_survives():
    silence = Silence(server_options(), channel_options())
    async with asyncio.TaskGroup() as tasks:
        ends = tasks.create_task(silence.code())
        await asyncio.sleep(600)  # the silence is the test
        silence.end.set()
    assert ends.result() is grpc.StatusCode.OK


@pytest.mark.slow
async def test_callers_that_leave_at_any_moment_leave_no_handler_and_no_error_behind(caplog):
    calls, draw = OpenCalls(), random.Random(1)

    async def generate(request: Any, call: Call) -> None:
        with calls:
            for _ in range(200):
                await call.send(b"")

    async def lend(call: Call) -> None:
        with calls:
            while await call.receive() is not None:
                await call.send(b"")

    async def read_some(channel: Channel) -> None:
        timeout_s, num_messages = draw.choice([None, 0.02, 0.1]), draw.randint(0, 150)
        async with channel.stream(INFERENCE, "Generate", b"", timeout_s=timeout_s) as stream:
            for _ in range(num_messages):
                await stream.receive()

    async def talk_some(channel: Channel) -> None:
        timeout_s, num_messages = draw.choice([None, 0.02]), draw.randint(0, 20)
        async with channel.exchange(WORKER, "Lend", timeout_s=timeout_s) as exchange:
            for _ in range(num_messages):
                await exchange.send(b"")
                await exchange.receive()

    services = [
        service_handlers(INFERENCE, {"Generate": generate}),
        service_handlers(WORKER, {"Lend": lend}),
    ]
    async with (
        Server(services) as server,
        open_channel(server.address) as channel,
        asyncio.timeout(60),
    ):
        talks = [talk(channel) for _ in range(100) for talk in (read_some, talk_some)]
        outcomes = await asyncio.gather(*talks, return_exceptions=True)
        await calls.none()
    kinds = {type(outcome): outcome for outcome in outcomes}
    assert kinds.keys() <= {type(None), DeadlineExceeded}, kinds
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.slow
async def test_every_call_of_a_large_burst_gets_an_answer():
    """By default gRPC drops calls by lot, without a word, once a thousand wait to be taken."""
    request = inference_pb2.TokenizeRequest(text="four").SerializeToString()
    async with (
        Server(inference(Tokenize=tokenize)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        call = channel.unary_unary(f"/{INFERENCE}/Tokenize")
        ends = await asyncio.gather(
            *(call(request, timeout=60) for _ in range(4_000)), return_exceptions=True
        )
    assert [end for end in ends if isinstance(end, BaseException)] == []
