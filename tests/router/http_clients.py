"""Clients of the HTTP door of a router in this loop: OpenAI's own, unmodified, and bare sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import openai

from router.http.door import http_server
from router.http.server import HttpServer
from tests.router.cluster_of_fakes import Cluster

QUESTION: Any = [{"role": "user", "content": "hello"}]


class HttpReply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return dict(self.json["error"])


@asynccontextmanager
async def openai_client(cluster: Cluster, **given: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    """Sends nothing again, so that what is refused is seen."""
    base = f"http://{cluster.router.http_address}/v1"
    values: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 20.0, **given}
    async with openai.AsyncOpenAI(base_url=base, **values) as client:
        yield client


def pinging(cluster: Cluster, *, ping_s: float) -> HttpServer:
    """Another door to the same router, of which streams say sooner that they live."""
    router = cluster.router
    return http_server(
        router.lanes._text,
        router.reception,
        router.callers,
        address="127.0.0.1:0",
        clock=router.clock,
        is_serving=lambda: True,
        pages=router.pages,
        ping_s=ping_s,
    )


async def asked(
    cluster: Cluster, method: str, path: str, body: Any = None, at: str = "", **headers: str
) -> HttpReply:
    """One request over a connection of its own; a body that is no bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    given = {"content-type": "application/json", **headers}
    named = {name.replace("_", "-"): value for name, value in given.items()}
    named |= {"host": "x", "connection": "close", "content-length": str(len(data))}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    answer = await exchanged(
        at or cluster.router.http_address, f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data
    )
    return parsed_reply(answer)


async def exchanged(address: str, data: bytes, within_s: float = 30.0) -> bytes:
    """Sends these bytes, and reads until the other side closes."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(within_s):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(data)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


def parsed_reply(answer: bytes) -> HttpReply:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunked(body)
    return HttpReply(int(status.split(" ")[1]), headers, body)


def _unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        num_bytes = int(size, 16)
        whole, body = whole + body[:num_bytes], body[num_bytes + 2 :]
    return whole


def frames(body: bytes) -> list[str]:
    """The data of server-sent events; comments as they are."""
    events = [event for event in body.decode().split("\n\n") if event]
    return [event.removeprefix("data: ") for event in events]


def typed_events(body: bytes) -> list[tuple[str, Any]]:
    """Names and data of server-sent events that have names; comments have none of both."""
    events = [event.partition("\n") for event in body.decode().split("\n\n") if event]
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")) if data else None)
        for name, _, data in events
    ]
