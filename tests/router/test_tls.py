"""TLS at both front doors: who gets in, what is shown, and that a new certificate is shown to new
connections while open streams go on."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import openai
import pytest

from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc
from router.http import greeting
from router.tls import follow
from tests.certificates import (
    Pair,
    SigningCa,
    client_context,
    der,
    shown_at,
    write_pair,
)
from tests.router.cluster_of_fakes import Answer, Cluster
from tests.router.fake_worker import Faults
from tests.router.http_clients import QUESTION

CA, CLIENTS = SigningCa(), SigningCa("clients")
PAIR = CA.pair()
CHAT: dict[str, Any] = {"model": "echo", "messages": QUESTION, "max_tokens": 4}


@asynccontextmanager
async def running(
    checkpoint: Path, folder: Path, *, client_ca: bytes | None = None, **settings: Any
) -> AsyncIterator[Cluster]:
    files = write_pair(folder, PAIR, client_ca)
    given = {"tls": files, "internal": "127.0.0.1:0", "drain_s": 5.0, **settings}
    async with Cluster(checkpoint, folder, **given) as cluster:
        yield cluster


async def models(
    address: str, credentials: grpc.ChannelCredentials | None
) -> pb.ListModelsResponse:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.aio.insecure_channel(address, options)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, options)
    )
    async with channel:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        reply: pb.ListModelsResponse = await stub.ListModels(pb.ListModelsRequest(), timeout=5)
        return reply


async def got_by_http(
    cluster: Cluster, context: ssl.SSLContext | None, path: str = "/livez"
) -> bytes:
    """Raises OSError where nobody answers."""
    host, _, port = cluster.router.http_address.rpartition(":")
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            if not (answer := await reader.read()):
                raise ConnectionResetError("it hung up without a word")
            return answer
        finally:
            writer.close()


@asynccontextmanager
async def openai_client(
    cluster: Cluster, context: ssl.SSLContext
) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"https://{cluster.router.http_address}/v1",
        api_key="none",
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(verify=context),
    ) as client:
        yield client


async def until_shown(address: str, pair: Pair) -> None:
    async with asyncio.timeout(10):
        while await asyncio.to_thread(shown_at, address) != der(pair):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_both_doors_speak_tls_and_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    async with running(checkpoint, tmp_path) as cluster, cluster.worker("d0") as worker:
        await cluster.serving(worker)
        answer = await cluster.generate(token_ids=pb.TokenIds(ids=[5, 6, 7]))
        assert answer.is_complete
        async with openai_client(cluster, client_context(CA)) as client:
            whole = await client.chat.completions.create(**CHAT)
            assert whole.choices[0].finish_reason
            chunks = await client.chat.completions.create(**CHAT, stream=True)
            assert [each async for each in chunks][-1].choices[0].finish_reason
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await models(cluster.address, None)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(ConnectionResetError):
            await got_by_http(cluster, None)
        with pytest.raises(ssl.SSLCertVerificationError):
            await got_by_http(cluster, ssl.create_default_context())


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_older_versions_are_refused(version: str, checkpoint: Path, tmp_path: Path) -> None:
    old = client_context(CA)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.maximum_version = ssl.TLSVersion[version]
    recent = client_context(CA)
    recent.maximum_version = ssl.TLSVersion.TLSv1_2
    async with running(checkpoint, tmp_path) as cluster:
        for address in cluster.address, cluster.router.http_address:
            host, _, port = address.rpartition(":")
            with pytest.raises(OSError):  # noqa: PT011 - a reset, or an alert
                await asyncio.open_connection(host, int(port), ssl=old)
            _, writer = await asyncio.open_connection(host, int(port), ssl=recent)
            writer.close()


async def test_with_a_client_ca_only_its_clients_come_in(checkpoint: Path, tmp_path: Path) -> None:
    ours, strangers = CLIENTS.pair(name="app"), CA.pair(name="app")

    def shows(pair: Pair | None) -> grpc.ChannelCredentials:
        key, chain = (pair.key, pair.certificate) if pair else (None, None)
        return grpc.ssl_channel_credentials(CA.certificate, key, chain)

    async with running(checkpoint, tmp_path, client_ca=CLIENTS.certificate) as cluster:
        assert (await models(cluster.address, shows(ours))).models
        assert b" 200 " in await got_by_http(cluster, client_context(CA, ours, tmp_path))
        for refused in (None, strangers):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await models(cluster.address, shows(refused))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(OSError):  # noqa: PT011 - a reset, or an alert
                await got_by_http(cluster, client_context(CA, refused, tmp_path))


async def test_a_new_certificate_is_shown_while_streams_go_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "INTERVAL_S", 0.02)
    slow = Faults(stall_after=1)
    async with (
        running(checkpoint, tmp_path) as cluster,
        cluster.worker("d0", faults=slow) as worker,
        openai_client(cluster, client_context(CA)) as client,
    ):
        await cluster.serving(worker)
        by_grpc = Answer()
        asked = asyncio.create_task(
            cluster.generate(answer=by_grpc, token_ids=pb.TokenIds(ids=[5, 6, 7]))
        )
        by_http = await client.chat.completions.create(**CHAT, stream=True)
        await cluster.until(lambda: bool(by_grpc.messages))
        renewed = CA.pair()
        write_pair(tmp_path, renewed)
        for address in cluster.address, cluster.router.http_address:
            await until_shown(address, renewed)
        worker.resume()
        assert (await asked).is_complete
        assert [each async for each in by_http][-1].choices[0].finish_reason
        # What is broken is told, and is not shown.
        write_pair(tmp_path, Pair(renewed.certificate, PAIR.key))
        shown = cluster.router.certificate
        assert shown is not None
        await cluster.until(lambda: "is not the key of" in shown.error)
        assert (await models(cluster.address, grpc.ssl_channel_credentials(CA.certificate))).models
        page = (await got_by_http(cluster, client_context(CA), "/metrics")).decode()
        assert "penstock_certificate_is_current 0" in page
        [left] = [
            line for line in page.splitlines() if line.startswith("penstock_certificate_expires")
        ]
        assert 19 * 86_400 < float(left.split()[1]) <= 20 * 86_400


async def test_who_is_silent_in_a_handshake_keeps_nobody_out(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(greeting, "HANDSHAKE_S", 0.2)
    num = greeting.MAX_GREETINGS + 40
    async with running(checkpoint, tmp_path) as cluster:
        silent = []
        for address in cluster.address, cluster.router.http_address:
            host, _, port = address.rpartition(":")
            silent += [socket.create_connection((host, int(port))) for _ in range(num)]
        try:
            for each in silent[::2]:
                each.send(b"\x16\x03\x01\x02\x00")  # the beginning of a hello
            trusted = grpc.ssl_channel_credentials(CA.certificate)
            assert (await models(cluster.address, trusted)).models
            assert b" 200 " in await got_by_http(cluster, client_context(CA))
            reader, writer = await asyncio.open_connection(sock=silent.pop())
            async with asyncio.timeout(5):
                assert await reader.read() == b""  # hung up on, in time
            writer.close()
        finally:
            for each in silent:
                each.close()


async def test_a_refusal_is_heard_over_tls(checkpoint: Path, tmp_path: Path) -> None:
    async with running(checkpoint, tmp_path) as cluster:
        host, _, port = cluster.router.http_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=client_context(CA))
        # Sent with the end of the handshake: nothing that comes early is lost.
        writer.write(b"no HTTP\r\n\r\n")
        async with asyncio.timeout(5):
            assert b"no HTTP/1.1 request" in await reader.read()
        writer.close()
