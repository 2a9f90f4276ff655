"""Who a caller is, as both front doors find it: refused with a sentence, or served as his tenant.
Workers are fakes, OpenAI's client is its own."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import openai
import pytest

from penstock.aio import AsyncClient
from penstock.errors import UnauthenticatedError
from penstock.v1 import inference_pb2 as pb
from router.callers.key_file import new_key
from tests.router.cluster_of_fakes import MODEL, Cluster, failure
from tests.router.http_clients import QUESTION, asked, exchanged, openai_client, parsed_reply
from tests.router.keyed import entry, shown, write_keys

CHAT = "/v1/chat/completions"
ACME, RIVAL, BATCH = new_key(), new_key(), new_key()
WRONG = [
    "",
    "Bearer",
    "Bearer ",
    "Bearer none",
    "Basic " + ACME,
    ACME,
    f"Bearer {ACME}x",
    f"Bearer {ACME[:-1]}",
    f"Bearer {ACME.upper()}",
    "Bearer " + "x" * 5_000,
    f"Bearer {ACME} {ACME}",
]


@pytest.fixture
async def keyed(checkpoint: Path, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A router that knows three keys."""
    keys = write_keys(
        tmp_path / "keys.json",
        entry(ACME),
        entry(RIVAL, "rival"),
        entry(BATCH, "acme", id="acme-batch", service_class="default"),
    )
    async with Cluster(checkpoint, tmp_path, drain_s=5.0, keys_file=keys) as cluster:
        yield cluster


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def refused(cluster: Cluster, metadata: Any, request: str = "GetModel") -> Any:
    """How a call over gRPC ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(cluster.inference, request)(pb.GetModelRequest(), metadata=metadata)
    return failure(caught.value)


async def test_whoever_shows_a_key_is_its_tenant_at_either_door(keyed: Cluster) -> None:
    async with keyed.worker("d0", text="a") as worker:
        await keyed.serving(worker)
        await keyed.generate(text="hello", metadata=shown(ACME))
        async with openai_client(keyed, api_key=RIVAL) as client:
            await client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=2)
            streamed = await client.completions.create(model=MODEL, prompt="x", stream=True)
            assert [chunk async for chunk in streamed]
        async with AsyncClient(keyed.address, api_key=ACME) as client:
            assert (await client.generate("hello", max_tokens=1)).usage.completion_tokens == 1
            assert (await client.model()).name == MODEL
        tenants = [request.tenant for request in worker.requests]
        assert tenants == ["acme", "rival", "rival", "acme"]
        assert set(keyed.router.placer.books.tenants.used_s(keyed.router.clock())) == {
            "acme",
            "rival",
        }


@pytest.mark.parametrize("header", WRONG, ids=range(len(WRONG)))
async def test_whoever_shows_no_key_of_ours_is_refused_with_a_sentence(
    keyed: Cluster, header: str
) -> None:
    told = await refused(keyed, (("authorization", header),))
    assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert "key" in told.message
    reply = await asked(keyed, "POST", CHAT, {"messages": QUESTION}, authorization=header)
    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert reply.error["message"] == told.message
    assert ACME not in told.message
    assert keyed.router.callers.num_refused == 2


async def test_nobody_and_two_at_once_are_refused(keyed: Cluster) -> None:
    for metadata in ((), (*shown(ACME), *shown(RIVAL)), (*shown(ACME), *shown(ACME))):
        told = await refused(keyed, metadata)
        assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert "authorization: Bearer KEY" in told.message
        lines = "".join(f"{name}: {value}\r\n" for name, value in metadata)
        head = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{lines}\r\n"
        reply = parsed_reply(await exchanged(keyed.router.http_address, head.encode()))
        assert (reply.status, reply.error["message"]) == (401, told.message)


async def test_openais_client_raises_its_own_error(keyed: Cluster) -> None:
    async with openai_client(keyed, api_key="sk-of-another-service") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model=MODEL, messages=QUESTION)
        assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    async with openai_client(keyed, api_key=ACME) as client:
        assert [model.id async for model in client.models.list()] == [MODEL]


async def test_our_client_raises_its_own_error(
    keyed: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncClient(keyed.address) as client:
        with pytest.raises(UnauthenticatedError, match="authorization: Bearer KEY"):
            await client.models()
        with pytest.raises(UnauthenticatedError):
            await client.generate("x")
    monkeypatch.setenv("PENSTOCK_API_KEY", RIVAL)
    async with AsyncClient(keyed.address) as client:
        assert [model.name for model in await client.models()] == [MODEL]


async def test_what_says_how_it_is_stays_open_and_nothing_else(keyed: Cluster) -> None:
    for path in ("/livez", "/health", "/version", "/openapi.json"):
        assert (await asked(keyed, "GET", path)).status in (200, 503)
    assert (await asked(keyed, "GET", "/readyz")).status == 503  # no worker: not 401
    for path in ("/v1/models", f"/v1/models/{MODEL}"):
        assert (await asked(keyed, "GET", path)).status == 401
        assert (await asked(keyed, "GET", path, **bearer(ACME))).status == 200
    for path in (CHAT, "/v1/completions", "/tokenize", "/detokenize"):
        assert (await asked(keyed, "POST", path, {})).status == 401
    assert await keyed.health() in (1, 2)
    for method, request in (
        ("Tokenize", pb.TokenizeRequest(text="a")),
        ("Detokenize", pb.DetokenizeRequest(token_ids=[1])),
        ("ListModels", pb.ListModelsRequest()),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(keyed.inference, method)(request)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_openapi_page_tells_what_wants_a_key(keyed: Cluster) -> None:
    page = (await asked(keyed, "GET", "/openapi.json")).json
    assert page["components"]["securitySchemes"]["api_key"]["scheme"] == "bearer"
    wants = {path for path, by in page["paths"].items() for op in by.values() if "security" in op}
    assert wants >= {"/v1/models", CHAT, "/tokenize"}
    assert not wants & {"/livez", "/readyz", "/health", "/version", "/openapi.json"}


async def test_headers_of_any_size_and_letters_are_refused_and_the_door_stays_open(
    keyed: Cluster,
) -> None:
    hostile = [b"Bearer " + b"x" * (1 << 20), "Bearer ключ-ключ".encode(), b"Bearer \xff\xfe\x80"]
    for value in hostile:
        head = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: "
        answer = await exchanged(keyed.router.http_address, head + value + b"\r\n\r\n")
        assert not answer or parsed_reply(answer).status in (400, 401, 431)
    with pytest.raises(grpc.aio.AioRpcError):
        await keyed.inference.GetModel(pb.GetModelRequest(), metadata=shown("x" * (1 << 20)))
    binary = (("authorization-bin", b"\xff" * 100), ("authorization", "Bearer ~"))
    assert (await refused(keyed, binary)).reason == "UNAUTHENTICATED"
    model = await keyed.inference.GetModel(pb.GetModelRequest(), metadata=shown(ACME))
    assert model.model.name == MODEL


async def test_who_is_refused_hears_it_whatever_he_sends(keyed: Cluster) -> None:
    text: Any = [{"role": "user", "content": "x" * (8 << 20)}]
    for num_bytes in (1 << 16, 1 << 20, 20 << 20):
        reply = await asked(keyed, "POST", CHAT, b"x" * num_bytes)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    async with openai_client(keyed, api_key="none") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model=MODEL, messages=text)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await keyed.generate(text="x" * (4 << 20))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_tenant_that_a_caller_names_himself_counts_for_nothing(keyed: Cluster) -> None:
    async with keyed.worker("d0", text="a") as worker, openai_client(keyed, api_key=RIVAL) as one:
        await keyed.serving(worker)
        await one.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            max_tokens=1,
            user="acme",
            extra_body={"tenant": "acme"},
            extra_headers={"x-tenant": "acme", "openai-organization": "acme"},
        )
        await keyed.generate(
            text="x", metadata=(*shown(RIVAL), ("tenant", "acme"), ("x-tenant", "acme"))
        )
        assert [request.tenant for request in worker.requests] == ["rival", "rival"]


async def test_a_key_of_a_class_is_served_in_that_class_alone(keyed: Cluster) -> None:
    async with keyed.worker("d0", text="a") as worker:
        await keyed.serving(worker)
        await keyed.generate(text="x", metadata=shown(BATCH))
        await keyed.generate(text="x", service_class="default", metadata=shown(BATCH))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await keyed.generate(text="x", service_class="interactive", metadata=shown(BATCH))
        told = failure(caught.value)
        assert (told.code, told.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ("service_class",))
        assert "of class 'default'" in told.message
        body = {"messages": QUESTION, "service_class": "interactive"}
        reply = await asked(keyed, "POST", CHAT, body, **bearer(BATCH))
        assert (reply.status, reply.error["param"]) == (400, "service_class")


async def test_with_a_key_a_web_page_may_ask(keyed: Cluster) -> None:
    given = {"origin": "https://app.example.org"}
    reply = await asked(keyed, "POST", "/tokenize", {"prompt": "a"}, **given, **bearer(ACME))
    assert reply.status == 200
    assert (await asked(keyed, "POST", "/tokenize", {"prompt": "a"}, **given)).status == 401


async def test_the_log_tells_tenant_and_key_id_and_never_a_key(
    keyed: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with keyed.worker("d0", text="a") as worker:
        await keyed.serving(worker)
        await keyed.generate(text="hello", metadata=shown(BATCH))
        for header in WRONG:
            await refused(keyed, (("authorization", header),))
            await asked(keyed, "POST", CHAT, {"messages": QUESTION}, authorization=header)
    [fields] = [r.fields for r in caplog.records if r.getMessage() == "request"]  # type: ignore[attr-defined]
    assert (fields["tenant"], fields["key"]) == ("acme", "acme-batch")
    said = "\n".join(f"{r.getMessage()} {vars(r)}" for r in caplog.records)
    assert not any(key[4:] in said for key in (ACME, RIVAL, BATCH))


async def test_without_keys_any_text_is_one(cluster: Cluster) -> None:
    async with cluster.worker("d0", text="a") as worker, openai_client(cluster) as client:
        await cluster.serving(worker)
        await client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
        await cluster.generate(text="x", metadata=shown("anything"))
        assert [request.tenant for request in worker.requests] == ["default", "default"]
