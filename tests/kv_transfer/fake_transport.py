"""A transport that connects to nobody, and the pairs that it joins."""

import asyncio
from typing import Any

from cluster.errors import TransferFailed
from kv_transfer.life import Life
from kv_transfer.pairs import Pairs


class FakePeer:
    def __init__(self, transport: str, incarnation: str) -> None:
        self.transport = transport
        self.incarnation = incarnation
        self.life = Life()


class FakeTransport:
    """Connects, unless it has a failure or is made to wait."""

    address = "here"

    def __init__(self, name: str, failure: str = "") -> None:
        self.name = name
        self.failure = failure
        self.num_connects = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def connect(self, address: str) -> FakePeer:
        self.num_connects += 1
        await self.gate.wait()
        if self.failure:
            raise TransferFailed(self.failure)
        return FakePeer(self.name, address)

    def close(self) -> None: ...


def pairs_of(*transports: FakeTransport, required: str | None = None) -> Pairs:
    doors: Any = transports
    pool: Any = None
    return Pairs(pool, doors, required=required)
