"""Somebody who can write to the store, and who listens where a worker is said to be."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from cluster.events import EventLog
from cluster.membership import new_incarnation
from cluster.types import Incarnation, LoadReport, PrefillCost
from cluster.watch import WatchFeed
from penstock.v1 import worker_pb2
from tests.router.fake_worker import TOKEN

PROMPT = [*range(3, 67)]  # ids below 128 are one byte each on the wire

Answer = Callable[[bytes], "bytes | None"]


def says_nothing(challenge: bytes) -> bytes | None:
    """Knows no proofs: UNIMPLEMENTED."""
    return None


def makes_one_up(challenge: bytes) -> bytes | None:
    return b"\x0a\x20" + secrets.token_bytes(32) + b"\x12\x20" + secrets.token_bytes(32)


def says_the_same(challenge: bytes) -> bytes | None:
    return challenge


class Stranger:
    """Answers every call without asking who calls, and keeps all that it hears."""

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        *,
        incarnation: Incarnation | None = None,
        prove: Answer = says_nothing,
    ) -> None:
        self.address = address
        self.incarnation = incarnation or new_incarnation()
        self.prove = prove
        self.paths: list[str] = []
        self.heard = bytearray()  # metadata and messages, of all calls
        self.called = asyncio.Event()
        load = LoadReport(
            num_free_blocks=9000, num_blocks=9000, prefill_cost=PrefillCost(c0=0.0, c1=1e-6)
        )
        self._feed = WatchFeed(EventLog(self.incarnation), lambda: load, report_interval_s=0.05)

    @property
    def knows_the_token(self) -> bool:
        return TOKEN.encode() in self.heard

    @property
    def knows_the_prompt(self) -> bool:
        return bytes(PROMPT) in self.heard

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        path = details.method
        self.paths.append(path)
        self.called.set()
        for key, value in details.invocation_metadata or ():
            self.heard += f"{key}: {value}\n".encode()

        async def answer(messages: AsyncIterator[bytes], context: Any) -> None:
            async for message in messages:
                self.heard += message
                if path.endswith("/Prove"):
                    await self._answer_challenge(message, context)
            if path.endswith("/Watch"):
                await self._feed.watch(worker_pb2.WatchRequest(), lambda m: _write(context, m))
            elif not path.endswith("/Prove"):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "thank you")

        return grpc.stream_stream_rpc_method_handler(answer)

    async def _answer_challenge(self, challenge: bytes, context: Any) -> None:
        if (answer := self.prove(challenge)) is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "what is a proof?")
        await context.write(answer)

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self,))
        port = self._server.add_insecure_port(self.address)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._server.stop(0)


async def _write(context: Any, message: Any) -> None:
    await context.write(message.SerializeToString())
