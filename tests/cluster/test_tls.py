"""Calls between processes under TLS: as without, and what strangers hear."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from cluster import tls
from cluster.addresses import Endpoint
from cluster.authority import PLAIN, Authority, Credentials, create_authority, issue
from cluster.channel import open_channel
from cluster.door import door_service
from cluster.errors import ConfigError, PenstockError, Unauthenticated, WorkerLost
from cluster.proof import Doorkeeper
from cluster.rpc import Call, Server, service_handlers
from cluster.tls import certificate_configuration, followed_credentials
from penstock.v1 import inference_pb2, worker_pb2
from tests.certificates import SigningCa, der, shown_at
from tests.identities import BEYOND_LOOPBACK, half_trusted, of_authority_from, shown

TOKEN = "the-token-of-the-cluster"
INFERENCE, WORKER = "penstock.v1.Inference", "penstock.v1.Worker"
AUTHORITY = create_authority()
DAY = timedelta(days=1)
KIND = "PRIVATE KEY"  # in pieces: no file of ours looks like a key


async def tokenize(request: Any, call: Call) -> inference_pb2.TokenizeResponse:
    return inference_pb2.TokenizeResponse(token_ids=[len(request.text)])


async def lend(call: Call) -> None:
    while (message := await call.receive()) is not None:
        await call.send(worker_pb2.LendResponse.FromString(message.SerializeToString()))


@asynccontextmanager
async def listening(
    credentials: Credentials, host: str = "127.0.0.1", *, is_front_door: bool = False
) -> AsyncIterator[str]:
    door = Doorkeeper(TOKEN, is_front_door=is_front_door)
    services = [
        service_handlers(INFERENCE, {"Tokenize": tokenize}, door=door),
        service_handlers(WORKER, {"Lend": lend}, door=door),
        door_service(door),
    ]
    async with Server(services, address=f"{host}:0", credentials=credentials) as server:
        yield server.address


async def count(address: str, credentials: Credentials, text: str = "four") -> int:
    """One call, once both ends have proven themselves."""
    async with open_channel(address, TOKEN, credentials=credentials) as channel:
        request = inference_pb2.TokenizeRequest(text=text)
        answer = await channel.unary(INFERENCE, "Tokenize", request, timeout_s=20)
        return int(answer.token_ids[0])


async def refusal(address: str, credentials: Credentials, **texts: str) -> PenstockError:
    with pytest.raises(PenstockError) as refused:
        await count(address, credentials, **texts)
    return refused.value


@pytest.mark.parametrize("credentials", [PLAIN, shown(AUTHORITY)], ids=["plain", "TLS"])
async def test_calls_are_answered(credentials: Credentials) -> None:
    async with listening(credentials) as address:
        assert await count(address, credentials, "a" * 100_000) == 100_000
        async with (
            open_channel(address, TOKEN, credentials=credentials) as channel,
            channel.exchange(WORKER, "Lend", timeout_s=20) as exchange,
        ):
            for _ in range(3):
                await exchange.send(worker_pb2.LendRequest())
                assert await exchange.receive() is not None


async def test_each_process_signs_for_itself() -> None:
    one, two = shown(AUTHORITY), shown(AUTHORITY)
    assert one.at("") != two.at("")
    async with listening(one) as address:
        assert await count(address, two) == 4


async def test_on_loopback_nothing_is_encrypted_and_beyond_it_everything() -> None:
    credentials = Credentials(AUTHORITY)
    async with listening(credentials) as address:
        assert await count(address, credentials) == 4
        assert await count(address, PLAIN) == 4
    async with listening(credentials, BEYOND_LOOPBACK) as address:
        assert await count(address, credentials) == 4
        assert isinstance(await refusal(address, PLAIN), WorkerLost)


STRANGERS = {
    "without TLS": (PLAIN, "hung up as soon as we spoke to it without TLS"),
    "of another authority": (shown(create_authority()), "signed by another authority: give both"),
    "half trusted": (half_trusted(AUTHORITY), "hung up as soon as it saw our certificate"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_a_stranger_gets_nowhere_and_is_told_why(stranger: str) -> None:
    credentials, sentence = STRANGERS[stranger]
    async with listening(shown(AUTHORITY)) as address:
        refused = await refusal(address, credentials)
        assert isinstance(refused, WorkerLost | Unauthenticated)
        assert sentence in str(refused)
        assert await count(address, shown(AUTHORITY)) == 4


async def test_who_speaks_no_tls_is_told_apart() -> None:
    async with listening(PLAIN) as address:
        refused = await refusal(address, shown(AUTHORITY))
    assert isinstance(refused, Unauthenticated)
    assert "speaks no TLS there: it is a front door" in str(refused)


async def test_a_certificate_is_good_neither_before_its_time_nor_after() -> None:
    ended = of_authority_from(-10 * DAY, life=3 * DAY)
    early = of_authority_from(10 * DAY, life=3 * DAY)
    for credentials, sentence in ((ended, "has expired"), (early, "is not yet valid")):
        async with listening(credentials) as address:
            assert sentence in str(await refusal(address, credentials))


@pytest.mark.parametrize("minutes", [-600, 600])
async def test_clocks_may_differ_by_hours(minutes: int) -> None:
    """The machine that drew the authority was ahead, or behind."""
    credentials = of_authority_from(timedelta(minutes=minutes), life=DAY)
    async with listening(credentials) as address:
        assert await count(address, credentials) == 4


async def test_an_authority_says_that_it_ends_and_then_signs_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    issue(create_authority(life=40 * DAY))
    assert caplog.messages == []
    issue(create_authority(life=20 * DAY))
    [warning] = caplog.messages
    assert "ends on" in warning
    assert "penstock secrets" in warning
    ended = create_authority(life=-timedelta(hours=1))
    with pytest.raises(ConfigError, match=r"ended on .* draw a new file with 'penstock secrets'"):
        issue(ended)


@pytest.mark.parametrize(
    "broken",
    [
        replace(AUTHORITY, key=f"-----BEGIN {KIND}-----\nc2VjcmV0\n"),
        replace(AUTHORITY, certificate="-----BEGIN nothing"),
        replace(AUTHORITY, key=create_authority().key),
    ],
)
def test_an_authority_that_is_none_is_refused_without_quoting_it(broken: Authority) -> None:
    with pytest.raises(ConfigError, match="no certificate with its key") as refused:
        issue(broken)
    assert "c2VjcmV0" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_no_key_is_in_a_repr() -> None:
    identity = issue(AUTHORITY)
    shown_text = repr(AUTHORITY) + repr(identity) + repr(Credentials(AUTHORITY))
    assert "PRIVATE KEY" not in shown_text
    for key in (AUTHORITY.key, identity.key.decode()):
        assert key.splitlines()[1] not in shown_text  # the rest has the public half, too


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
async def test_at_the_front_door_calls_of_the_cluster_are_for_this_machine_alone(
    host: str,
) -> None:
    async with listening(PLAIN, host, is_front_door=True) as address:
        port = address.rpartition(":")[2]
        assert await count(f"127.0.0.1:{port}", PLAIN) == 4
        refused = await refusal(str(Endpoint(BEYOND_LOOPBACK, int(port))), PLAIN)
        assert isinstance(refused, Unauthenticated)
        assert "go to the router's 'internal' address" in str(refused)


async def test_a_server_that_takes_a_tls_port_over_hears_nothing() -> None:
    """A lost connection is made anew by gRPC: under TLS, or not at all."""
    heard = bytearray()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(1 << 16))
        writer.close()

    async with listening(shown(AUTHORITY)) as address:
        channel = open_channel(address, TOKEN, credentials=shown(AUTHORITY))
        request = inference_pb2.TokenizeRequest(text="a secret prompt")
        await channel.unary(INFERENCE, "Tokenize", request, timeout_s=20)
    taker = await asyncio.start_server(hear, "127.0.0.1", int(address.rpartition(":")[2]))
    async with taker:
        for _ in range(3):
            with pytest.raises(PenstockError):
                await channel.unary(INFERENCE, "Tokenize", request, timeout_s=20)
        await channel.close()
    assert b"secret" not in heard
    assert TOKEN.encode() not in heard


@pytest.mark.prove
async def test_what_is_shown_may_change_with_every_handshake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the time to settle gRPC ends the process within some rounds of these."""
    monkeypatch.setattr(tls, "_SETTLED_S", 0.004)
    pair = SigningCa().pair()
    for _ in range(5):
        changing = followed_credentials(
            lambda: certificate_configuration(*pair, None), asks_clients=False
        )
        async with Server([], shown=changing) as server:
            host, _, port = server.address.rpartition(":")
            opened = [socket.create_connection((host, int(port))) for _ in range(300)]
            assert await asyncio.to_thread(shown_at, server.address) == der(pair)
            for each in opened:
                each.close()
