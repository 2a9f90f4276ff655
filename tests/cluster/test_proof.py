"""Both ends of a connection prove themselves; what is seen of it is worth nothing elsewhere."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.channel import open_channel
from cluster.door import door_service
from cluster.errors import InvalidRequest, PenstockError, Unauthenticated, WorkerLost
from cluster.proof import ANYONE, MAX_AUDIENCE_LETTERS, Challenge, Doorkeeper, audience_of
from cluster.rpc import Call, Server, service_handlers
from penstock.v1 import inference_pb2, worker_pb2, worker_pb2_grpc
from tests.cluster.cluster_samples import member
from tests.redis_server import free_port

TOKEN = "the-token-of-the-cluster"
INFERENCE = "penstock.v1.Inference"
TOKENIZE = f"/{INFERENCE}/Tokenize"
SECRET = "what the prompt says"
OURS, PEER = audience_of(member("d0").worker), "ipv4:127.0.0.1:4711"


def doorkeeper(token: str = TOKEN, audience: str = OURS) -> Doorkeeper:
    made = Doorkeeper(token)
    made.audience = audience
    return made


def passed(door: Doorkeeper, peer: str = PEER, audience: str = OURS, token: str = TOKEN) -> str:
    """The pass for `Tokenize` of a client that has gone through all of it."""
    ours = Challenge(token, audience)
    answer = door.answer(ours.nonce, ours.audience, ours.proof, peer)
    return ours.accept(answer.nonce, answer.proof)[TOKENIZE]


@pytest.mark.parametrize("audience", [OURS, ANYONE])
def test_two_who_hold_the_token_let_each_other_in(audience: str):
    door = doorkeeper()
    door.check(PEER, TOKENIZE, passed(door, audience=audience))


def test_a_pass_is_good_for_one_connection_one_method_and_one_life():
    door = doorkeeper()
    earned = passed(door)
    door.check(PEER, TOKENIZE, earned)
    elsewhere = [
        (door, "ipv4:127.0.0.1:4712", TOKENIZE),
        (door, PEER, f"/{INFERENCE}/Generate"),
        (doorkeeper(), PEER, TOKENIZE),
    ]
    for another, peer, path in elsewhere:
        with pytest.raises(Unauthenticated, match="needs a pass"):
            another.check(peer, path, earned)


@pytest.mark.parametrize(
    "given", [None, "", TOKEN, f"Bearer {TOKEN}", "Penstock ", "Penstock \xff"]
)
def test_nothing_else_lets_anybody_in(given: str | None):
    with pytest.raises(Unauthenticated):
        doorkeeper().check(PEER, TOKENIZE, given)


def test_who_lacks_the_token_neither_gets_an_answer_nor_gives_one():
    other = Challenge("another-token", OURS)
    with pytest.raises(Unauthenticated, match="same secrets file"):
        doorkeeper().answer(other.nonce, OURS, other.proof, PEER)
    ours = Challenge(TOKEN, OURS)
    for nonce, proof in ((ours.nonce, ours.proof), (bytes(32), bytes(32)), (b"", b"")):
        with pytest.raises(Unauthenticated):
            ours.accept(nonce, proof)


def test_the_true_one_does_not_answer_for_a_stranger():
    """Who listens where a life that is over did passes the challenge on to one that lives."""
    lives, over = member("d0", "2", port=2).worker, member("d0", "1", port=1).worker
    moved = member("d0", "2", port=3).worker  # the same life, at a stranger's address
    for looked_for in (over, moved):
        ours = Challenge(TOKEN, audience_of(looked_for))
        with pytest.raises(Unauthenticated, match="does not listen here"):
            doorkeeper(audience=audience_of(lives)).answer(
                ours.nonce, ours.audience, ours.proof, PEER
            )
        with pytest.raises(Unauthenticated):  # nor with another name in its place
            doorkeeper(audience=audience_of(lives)).answer(
                ours.nonce, audience_of(lives), ours.proof, PEER
            )


def test_an_answer_to_another_is_none():
    door, first, second = doorkeeper(), Challenge(TOKEN, OURS), Challenge(TOKEN, OURS)
    answer = door.answer(first.nonce, OURS, first.proof, PEER)
    with pytest.raises(Unauthenticated):
        second.accept(answer.nonce, answer.proof)


@given(nonce=st.binary(max_size=64), audience=st.text(max_size=40), proof=st.binary(max_size=64))
def test_whatever_is_said_at_the_door_is_refused_with_a_sentence(
    nonce: bytes, audience: str, proof: bytes
):
    with pytest.raises((Unauthenticated, InvalidRequest)):
        doorkeeper().answer(nonce, audience, proof, PEER)
    with pytest.raises(Unauthenticated):
        Challenge(TOKEN, OURS).accept(nonce, proof)


def test_a_name_that_never_ends_is_refused():
    ours = Challenge(TOKEN, "x" * (MAX_AUDIENCE_LETTERS + 1))
    with pytest.raises(InvalidRequest, match="1001 letters"):
        doorkeeper().answer(ours.nonce, ours.audience, ours.proof, PEER)


def test_no_secret_is_shown():
    door, ours = doorkeeper(), Challenge(TOKEN, OURS)
    answer = door.answer(ours.nonce, OURS, ours.proof, PEER)
    passes = ours.accept(answer.nonce, answer.proof)
    for shown in map(repr, (door, ours, passes)):
        assert TOKEN not in shown
        assert passes[TOKENIZE] not in shown


# On the wire


class Listener:
    """A process of the cluster, and what it is asked."""

    def __init__(self, address: str = "127.0.0.1:0", token: str = TOKEN) -> None:
        self.doorkeeper = Doorkeeper(token)
        self.asked: list[str] = []
        services = [
            service_handlers(INFERENCE, {"Tokenize": self._tokenize}, door=self.doorkeeper),
            door_service(self.doorkeeper),
        ]
        self.server = Server(services, address=address)

    async def _tokenize(self, request: Any, call: Call) -> inference_pb2.TokenizeResponse:
        self.asked.append(request.text)
        return inference_pb2.TokenizeResponse()

    async def __aenter__(self) -> "Listener":
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop()


async def say(channel: Any, text: str = SECRET, **options: Any) -> None:
    request = inference_pb2.TokenizeRequest(text=text)
    await channel.unary(INFERENCE, "Tokenize", request, timeout_s=20, **options)


async def test_many_calls_cost_one_proof():
    async with Listener() as listener, open_channel(listener.server.address, TOKEN) as channel:
        answer, num_proofs = listener.doorkeeper.answer, 0

        def counting(*said: Any) -> Any:
            nonlocal num_proofs
            num_proofs += 1
            return answer(*said)

        listener.doorkeeper.answer = counting  # type: ignore[method-assign]
        await asyncio.gather(*(say(channel) for _ in range(50)))
        await say(channel)
        assert (num_proofs, len(listener.asked)) == (1, 51)


async def test_a_process_that_comes_back_is_asked_for_its_proof_again():
    port = free_port()
    async with Listener(f"127.0.0.1:{port}") as one:
        channel = open_channel(one.server.address, TOKEN)
        await say(channel)
    with pytest.raises(WorkerLost):
        await say(channel)
    async with Listener(f"127.0.0.1:{port}") as other:
        await say(channel, wait_for_ready=True)
        assert other.asked == [SECRET]
    await channel.close()


@pytest.mark.parametrize("audience", [ANYONE, OURS])
async def test_whoever_takes_the_port_over_hears_nothing(audience: str):
    """At any moment: calls go on all the while."""
    port, heard = free_port(), bytearray()
    address = f"127.0.0.1:{port}"
    channel = open_channel(address, TOKEN, audience)
    failures: list[PenstockError] = []
    is_over = asyncio.Event()

    async def go_on_asking() -> None:
        while not is_over.is_set():
            try:
                await say(channel)
            except PenstockError as error:
                failures.append(error)
            await asyncio.sleep(0)

    class Taker:
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            heard.extend(repr(details.invocation_metadata).encode())

            async def hear(message: bytes, context: Any) -> bytes:
                heard.extend(message)
                return message  # as a proof: the same again

            return grpc.unary_unary_rpc_method_handler(hear)

    async with asyncio.TaskGroup() as tasks:
        async with Listener(address) as listener:
            listener.doorkeeper.audience = audience
            for _ in range(4):
                tasks.create_task(go_on_asking())
            while len(listener.asked) < 20:  # noqa: ASYNC110 - of calls that go on
                await asyncio.sleep(0.01)
        taker = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        taker.add_generic_rpc_handlers((Taker(),))
        taker.add_insecure_port(address)
        await taker.start()
        before = len(failures)
        async with asyncio.timeout(60):
            while not heard or len(failures) < before + 20:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.01)
        is_over.set()
        await taker.stop(0)
    await channel.close()
    assert TOKEN.encode() not in heard
    assert SECRET.encode() not in heard
    kind = WorkerLost if audience else Unauthenticated
    assert any(isinstance(failure, kind) for failure in failures[before:])


async def test_a_pass_that_was_overheard_is_refused_on_another_connection():
    async with Listener() as listener:
        address = listener.server.address
        async with grpc.aio.insecure_channel(address) as one:
            ours = Challenge(TOKEN)
            stub: Any = worker_pb2_grpc.DoorStub(one)
            request = worker_pb2.ProveRequest(nonce=ours.nonce, proof=ours.proof)
            answer = await stub.Prove(request)
            earned = ours.accept(answer.nonce, answer.proof)[TOKENIZE]
            metadata = (("authorization", earned),)
            await one.unary_unary(TOKENIZE)(b"", metadata=metadata)
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as other:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await other.unary_unary(TOKENIZE)(b"", metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert len(listener.asked) == 1


async def test_a_stranger_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.visitor.KNOCK_S", 0.1)

    async def mute(*_: Any) -> None:
        await asyncio.Event().wait()

    handlers = {"Prove": grpc.unary_unary_rpc_method_handler(mute)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("penstock.v1.Door", handlers),)
    )
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with open_channel(address, TOKEN, OURS) as channel:
        with pytest.raises(WorkerLost, match="does not prove"):
            await say(channel)
    await server.stop(0)


async def test_a_call_that_is_ended_before_it_has_begun_does_not_begin():
    async with Listener() as listener, open_channel(listener.server.address, TOKEN) as channel:
        stream = channel.stream(INFERENCE, "Generate", b"", timeout_s=5)
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with stream:
                await stream.receive()


async def test_a_channel_that_is_closed_while_it_knocks_ends_its_calls_as_lost():
    channel = open_channel(f"127.0.0.1:{free_port()}", TOKEN, OURS)
    asking = asyncio.create_task(say(channel, wait_for_ready=True))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await channel.close()
    with pytest.raises(WorkerLost):
        await asking
    with pytest.raises(WorkerLost):
        await say(channel)
