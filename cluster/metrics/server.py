"""Serves a few pages by HTTP/1.1 to who scrapes: workers have no other door for it. Nothing is read
but the path, one request a connection; whoever says too much, too slowly or too often is left.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from cluster.addresses import Endpoint
from cluster.errors import StartupError
from cluster.lateness import Patience
from cluster.metrics.exposition import CONTENT_TYPE, Registry

logger = logging.getLogger(__name__)
_MAX_CONNECTIONS: Final = 16
_MAX_HEAD_BYTES: Final = 8 << 10
_HEAD_S: Final = 5.0  # so long a head may take to come,
_BODY_S: Final = 10.0  # and an answer to be read
_LEFT: Final = (
    TimeoutError,
    asyncio.IncompleteReadError,
    asyncio.LimitOverrunError,
    asyncio.CancelledError,
    OSError,
)


class Page(NamedTuple):
    content_type: str
    text: Callable[[], Awaitable[bytes]]


Pages = Mapping[str, Page]  # by path


class MetricsServer:
    """`async with` runs it. A page is made when it is asked for."""

    def __init__(self, pages: Pages, *, address: str) -> None:
        self._pages = pages
        self._asked_address = address
        self.address = address  # with the port really bound, once started
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        endpoint = Endpoint.parse(self._asked_address)
        try:
            self._server = await asyncio.start_server(
                self._serve, *endpoint, limit=_MAX_HEAD_BYTES, backlog=_MAX_CONNECTIONS
            )
        except OSError as error:
            raise StartupError(
                f"Could not listen for who scrapes on '{self._asked_address}'"
                f" ({error.strerror or error}): is the port taken, or the host not this one's? Give"
                " another address as 'metrics', port 0 for any, or null for none."
            ) from error
        port = self._server.sockets[0].getsockname()[1]
        self.address = str(Endpoint(endpoint.host, port))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for each in self._open:
            each.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= _MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._open.add(task)
        try:
            async with Patience(_HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
            answer = await self._answer(head)
            async with Patience(_BODY_S):
                writer.write(answer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except _LEFT:
            pass  # it has gone, or is not worth waiting for; or the server ends
        except Exception:
            logger.exception("a scrape failed")
        finally:
            writer.transport.abort()
            self._open.discard(task)

    async def _answer(self, head: bytes) -> bytes:
        method, path = _asked(head)
        if method not in ("GET", "HEAD"):
            return _reply("405 Method Not Allowed", "text/plain", b"Ask here by GET.\n")
        page = self._pages.get(path)
        if page is None:
            known = "\n".join(["Nothing is at this path. There is:", *self._pages, ""])
            return _reply("404 Not Found", "text/plain", known.encode())
        body = await page.text()
        return _reply("200 OK", page.content_type, body, has_body=method == "GET")


def metrics_pages(registry: Registry[Any]) -> Pages:
    return {"/metrics": Page(CONTENT_TYPE, registry.text)}


def scraped_at(address: str | None, pages: Pages) -> MetricsServer | None:
    """Makes what serves one process's metrics; None: nobody is to scrape it."""
    return None if address is None else MetricsServer(pages, address=address)


def _asked(head: bytes) -> tuple[str, str]:
    """Method and path; two empty texts where it is no request."""
    words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return "", ""
    return words[0], words[1].partition("?")[0]


def _reply(status: str, content_type: str, body: bytes, *, has_body: bool = True) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        f"content-type: {content_type}",
        f"content-length: {len(body)}",
        "connection: close",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + (body if has_body else b"")
