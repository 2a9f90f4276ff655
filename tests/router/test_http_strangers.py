"""Whatever bytes come in at the HTTP port, nobody else notices."""

import asyncio
import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from cluster.limits import Limits
from router.http.reading import MAX_PROMPTS
from tests.router.cluster_of_fakes import Cluster
from tests.router.fake_worker import Faults
from tests.router.http_clients import QUESTION, asked, exchanged, frames, parsed_reply

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
NUM_STRINGS = 300

BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"messages":' + b"[" * 60_000,
    b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"messages":[{"role":"user","content":"\\ud800 and more"}]}',
    b'{"messages":[{"role":"user","content":"a"}],"temperature":NaN}',
    b'{"messages":[{"role":"user","content":"a"}],"temperature":1e999}',
    b'{"messages":[{"role":"user","content":"a"}],"seed":1e400}',
    b'{"messages":[{"role":"user","content":"a"}],"max_tokens":' + b"9" * 400 + b"}",
    b'{"messages":[{"role":"user","content":"a"}],"ttft_budget":1e30}',
    b'{"messages":[{"role":"user","content":"a"}],"logit_bias":{"-1":1}}',
    b'{"messages":[{"role":"user","content":"a"}],"stop_token_ids":[-1]}',
    b'{"messages":[{"role":"user","content":"a"}],"stream_options":7}',
    b'{"messages":{"role":"user"}}',
]
BAD_RESPONSES = [
    *BAD_BODIES,
    b'{"input":"\\ud800"}',
    b'{"input":' + b"[" * 60_000,
    b'{"input":"a","metadata":{"a":"\\udfff"}}',
    b'{"input":"a","user":"\\ud800"}',
    b'{"input":[{"role":"user","content":[{"type":"\\ud800"}]}]}',
    b'{"input":[[]]}',
    b'{"input":[null]}',
    b'{"input":"a","temperature":1e999}',
    b'{"input":"a","max_output_tokens":' + b"9" * 400 + b"}",
    b'{"input":"a","text":{"format":[1]}}',
    b'{"input":"a","include":{"a":1}}',
]
HEADS = [
    b"\x00" * 100,
    b"\r\n" * 1000,
    b"GET",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\n\r\n",
    b"GET /%zz HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    POST + b"content-length: -1\r\n\r\n",
    POST + b"content-length: 99999999999999999999\r\n\r\n",
    POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    POST + b"transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    POST + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n",
    POST + b"".join(b"a%d: b\r\n" % n for n in range(5_000)) + b"\r\n",
    b"GET /" + b"a" * 300_000,
    b"GET / HTTP/1.1\r\na: " + b"b" * 300_000,
]


def with_length(body: bytes) -> bytes:
    return POST + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body


def hostile(seed: int) -> Iterator[bytes]:
    """What is known to be bad, then good requests with bytes changed, cut off or doubled."""
    yield from HEADS
    yield from map(with_length, BAD_BODIES)
    draw = random.Random(seed)
    good = with_length(json.dumps({"messages": QUESTION, "stream": True}).encode())
    response = with_length(json.dumps({"input": QUESTION, "stream": True}).encode())
    response = response.replace(CHAT.encode(), RESPONSES.encode(), 1)
    while True:
        changed = bytearray(draw.choice([good, response]))
        for _ in range(draw.randint(1, 8)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        cut = draw.randrange(len(changed))
        yield bytes(draw.choice([changed, changed[:cut], changed * 2, changed[cut:]]))


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
async def test_a_body_that_is_no_request_is_refused(cluster: Cluster, body: bytes) -> None:
    reply = await asked(cluster, "POST", CHAT, body)
    assert reply.status == 400
    assert reply.error["message"].endswith(".")


@pytest.mark.parametrize("body", BAD_RESPONSES, ids=range(len(BAD_RESPONSES)))
async def test_a_body_that_is_no_response_to_make_is_refused(cluster: Cluster, body: bytes) -> None:
    reply = await asked(cluster, "POST", RESPONSES, body)
    assert reply.status == 400
    assert reply.error["message"].endswith(".")


@pytest.mark.slow
async def test_hostile_bytes_harm_nobody(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good stream beside them goes on, and is complete."""
    faults = Faults(stall_after=1)
    async with cluster.worker("d0", text="a", faults=faults) as worker:
        await cluster.serving(worker)
        body = {"messages": QUESTION, "stream": True}
        good = asyncio.create_task(asked(cluster, "POST", CHAT, body))
        await cluster.until(lambda: worker.num_sent == 1)
        faults.stall_after = None  # of whoever comes now
        with monkeypatch.context() as patch:  # who says no more is let go at once
            patch.setattr("router.http.server._HEAD_S", 0.1)
            patch.setattr("router.http.bodies._STALL_S", 0.1)
            for data in islice(hostile(7), NUM_STRINGS):
                await left(cluster, data)
        worker.resume()
        *_, done = frames((await good).body)
        assert done == "[DONE]"
        assert (await asked(cluster, "GET", "/livez")).status == 200
        await cluster.until(lambda: cluster.router.admission.num_in_flight == 0)


async def left(cluster: Cluster, data: bytes) -> None:
    """Sends these bytes, and leaves when an answer begins, which is HTTP and no fault of ours."""
    host, _, port = cluster.router.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        async with asyncio.timeout(10):
            answer = await reader.read(1 << 16)
            writer.write_eof()
            answer += await reader.read()
        if answer:
            status = answer.split(b" ")[1]
            assert status not in (b"500", b"501", b"502")
    except ConnectionError:
        pass
    finally:
        writer.close()


BEHIND = [b"\x00\x01garbage", b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"]


@pytest.mark.parametrize("behind", BEHIND)
async def test_what_comes_behind_a_request_never_gets_into_its_answer(
    cluster: Cluster, behind: bytes
) -> None:
    async with cluster.worker("d0", text="a") as worker:
        await cluster.serving(worker)
        body = json.dumps({"messages": QUESTION, "stream": True}).encode()
        request = POST + b"content-length: %d\r\n\r\n" % len(body) + body
        answer = await exchanged(cluster.router.http_address, request + behind)
        assert frames(parsed_reply(answer).body)[-1] == "[DONE]"
        assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("is_stream", [True, False])
async def test_what_comes_behind_a_request_does_not_hide_that_its_caller_leaves(
    cluster: Cluster, is_stream: bool
) -> None:
    async with cluster.worker("d0", faults=Faults(stall_after=1)) as worker:
        await cluster.serving(worker)
        host, _, port = cluster.router.http_address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({"messages": QUESTION, "stream": is_stream}).encode()
        writer.write(POST + b"content-length: %d\r\n\r\n" % len(body) + body + BEHIND[1])
        await cluster.until(lambda: worker.num_sent == 1)
        writer.close()
        async with asyncio.timeout(1):
            await cluster.until(lambda: worker.num_open == 0)
        await cluster.until(lambda: cluster.router.admission.num_in_flight == 0)


@pytest.mark.parametrize("is_chunked", [True, False])
@pytest.mark.parametrize("num_first", [0, 1, 10, 1000], ids="{}_bytes_at_first".format)
async def test_an_offered_upgrade_is_passed_over(
    cluster: Cluster, num_first: int, is_chunked: bool
) -> None:
    """As Java's client offers HTTP/2 with each request."""
    async with cluster.worker("d0", text="a") as worker:
        await cluster.serving(worker)
        body = json.dumps({"messages": QUESTION, "max_tokens": 2}).encode()
        offer = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n"
        framing = b"content-length: %d" % len(body)
        if is_chunked:
            framing, body = (
                b"transfer-encoding: chunked",
                b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
            )
        host, _, port = cluster.router.http_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(POST + offer + framing + b"\r\n\r\n" + body[:num_first])
        await asyncio.sleep(0)
        assert (await asked(cluster, "GET", "/livez")).status == 200  # so it has been read
        writer.write(body[num_first:])
        reply = parsed_reply(await reader.read())
        writer.close()
        assert reply.json["choices"][0]["message"]["content"] == "aa"
        assert reply.headers["connection"] == "close"


async def test_a_head_that_does_not_end_is_refused(cluster: Cluster) -> None:
    address = cluster.router.http_address
    for data in HEADS[-2:]:
        answer = parsed_reply(await exchanged(address, data))
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")


async def test_who_says_nothing_is_let_go(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.http.server._HEAD_S", 0.1)
    for data in (b"", b"\r\n", b"GET / HTTP/1.1\r\nhost:"):
        assert await exchanged(cluster.router.http_address, data, within_s=10) == b""


async def test_a_body_that_stops_coming_is_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.http.bodies._STALL_S", 0.1)
    data = POST + b"content-length: 100\r\n\r\n{"
    reply = parsed_reply(await exchanged(cluster.router.http_address, data))
    assert (reply.status, reply.error["code"]) == (400, "invalid_request")


async def test_too_many_connections_are_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster.router.http
    monkeypatch.setattr(cluster.router.http._state, "max_connections", 0)
    reply = parsed_reply(await exchanged(cluster.router.http_address, b""))
    assert (reply.status, reply.error["code"]) == (503, "overloaded")


SIZES = [("content-length", 3000), ("content-length", 3_000_000), ("transfer-encoding", 3000)]


@pytest.mark.parametrize(("how", "num_bytes"), SIZES)
async def test_a_body_over_the_limit_is_refused(
    checkpoint: Path, tmp_path: Path, how: str, num_bytes: int
) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x" * num_bytes}]}).encode()
    async with Cluster(checkpoint, tmp_path, limits=Limits(max_message_bytes=1000)) as cluster:
        if how == "content-length":
            reply = await asked(cluster, "POST", CHAT, body)
        else:
            chunk = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
            head = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
            reply = parsed_reply(await exchanged(cluster.router.http_address, head + chunk))
        assert (reply.status, reply.error["code"]) == (413, "request_too_large")


async def test_more_bodies_at_once_than_there_is_room_for_are_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.http.bodies._MAX_TOGETHER", 100_000)
    reply = await asked(cluster, "POST", CHAT, b" " * 200_000)
    assert (reply.status, reply.error["code"]) == (503, "overloaded")


async def test_many_prompts_are_refused(cluster: Cluster) -> None:
    body = {"prompt": ["x"] * (MAX_PROMPTS + 1)}
    reply = await asked(cluster, "POST", "/v1/completions", body)
    assert (reply.status, reply.error["param"]) == (400, "prompt")


LARGE: list[tuple[str, str, Any, str]] = [
    ("a text", CHAT, {"messages": [{"role": "user", "content": "x" * 200_000}]}, "messages"),
    ("messages", CHAT, {"messages": QUESTION * 20_000}, "messages"),
    ("ids", "/v1/completions", {"prompt": [1] * 200_000}, "prompt"),
    ("an unknown field", CHAT, {"messages": QUESTION, "tools": ["x" * 100_000]}, "tools"),
    ("an input", RESPONSES, {"input": "x" * 200_000}, "input"),
    ("items", RESPONSES, {"input": QUESTION * 20_000}, "input"),
    ("instructions", RESPONSES, {"input": "a", "instructions": "x" * 200_000}, "input"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "path", "body", "param"), LARGE, ids=[each[0] for each in LARGE])
async def test_a_large_body_is_read_beside_the_loop(
    cluster: Cluster, what: str, path: str, body: dict[str, Any], param: str
) -> None:
    reply = await asked(cluster, "POST", path, body)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert cluster.router.lanes.process.pid is not None
