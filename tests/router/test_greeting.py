"""TLS before HTTP, on both event loops that a router may run on: nothing is lost between the
handshake and what follows it, and who is slow is let go of, the slowest first."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from router.http import greeting
from router.http.greeting import TlsListener
from router.tls.certificate import load_certificate
from tests.certificates import SigningCa, client_context, write_pair

CA = SigningCa()
Test = Callable[[Path], Coroutine[Any, Any, None]]


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


@asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[int]:
    served = load_certificate(write_pair(folder, CA.pair()))
    bound = socket.create_server(("127.0.0.1", 0))
    port: int = bound.getsockname()[1]
    listener = TlsListener(bound, Echo, lambda: served.context)
    try:
        yield port
    finally:
        listener.close()


def echoed(port: int) -> bytes:
    """Speaks TLS and says something at once."""
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        client_context(CA).wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(b"hello")
        return secured.recv(5)


async def answers_all(folder: Path) -> None:
    async with listening(folder) as port:
        for _ in range(40):
            assert await asyncio.to_thread(echoed, port) == b"hello"


async def lets_the_slowest_go(folder: Path) -> None:
    async with listening(folder) as port:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        async with asyncio.timeout(5):
            for reader, _ in slow[:2]:
                assert await reader.read() == b""
        assert await asyncio.to_thread(echoed, port) == b"hello"
        for _, writer in slow:
            writer.close()


async def hangs_up_in_time(folder: Path) -> None:
    async with listening(folder) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01\x02\x00")  # the beginning of a hello
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def ends_with_the_listener(folder: Path) -> None:
    async with listening(folder) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.to_thread(echoed, port)  # it is known by now
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    with pytest.raises((OSError, ssl.SSLError)):
        await asyncio.to_thread(echoed, port)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize(
    ("test", "handshake_s"),
    [
        (answers_all, 10.0),
        (lets_the_slowest_go, 10.0),
        (hangs_up_in_time, 0.1),
        (ends_with_the_listener, 10.0),
    ],
)
def test_on_both_loops(
    test: Test, handshake_s: float, factory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(greeting, "MAX_GREETINGS", 3)
    monkeypatch.setattr(greeting, "HANDSHAKE_S", handshake_s)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(test(tmp_path))
