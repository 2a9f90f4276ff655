"""The receiving process of the KV transfer benchmark: `python -m bench.kv_far_process`.

Takes commands as JSON lines on stdin, answers each with one on stdout, and ends with stdin.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from bench.bare_nixl import NixlReceiver
from bench.bare_socket import SocketReceiver
from bench.kv_cases import Turns, parse_case
from cluster.types import Incarnation
from kv_transfer.doors import DoorSettings, open_doors
from kv_transfer.geometry import Spans
from kv_transfer.pool import FilePool, PoolConfig
from kv_transfer.transport import Transport

EPOCH = 1
MAX_LINE_BYTES = 2**20


class ReceivingEnd:
    """Owns the receiving pool, and whatever is open on it."""

    def __init__(
        self, *, run_dir: str, pool_bytes: int, cases: list[str], key: str, num_tcp_streams: int
    ) -> None:
        self._pool = FilePool(
            PoolConfig(
                incarnation=Incarnation("bench-far"), num_bytes=pool_bytes, run_dir=Path(run_dir)
            )
        )
        self._turns = {case: Turns(parse_case(case), pool_bytes) for case in cases}
        self._settings = DoorSettings(key=bytes.fromhex(key), num_tcp_streams=num_tcp_streams)
        self._digest = self._pool.digester()
        self._transport: Transport | None = None
        self._yardsticks: list[SocketReceiver | NixlReceiver] = []

    async def answer(self, command: str, **given: Any) -> dict[str, Any]:
        match command:
            case "open_door":
                return self._open_door(**given)
            case "join":
                return await self._join(**given)
            case "open_socket":
                sockets = SocketReceiver(self._pool.memory, self._turns, **given)
                self._yardsticks.append(sockets)
                return {"port": sockets.port}
            case "open_nixl":
                agent = NixlReceiver(self._pool.memory)
                self._yardsticks.append(agent)
                return {"metadata": agent.metadata.hex(), "address": agent.address}
            case "digest":
                return self._digest_of(**given)
            case "close_door":
                self._close_door()
                return {}
            case "close_yardsticks":
                self._close_yardsticks()
                return {}
        raise ValueError(f"There is no command '{command}'.")

    def _open_door(self, door: str) -> dict[str, Any]:
        [self._transport] = open_doors([door], self._pool, self._settings)
        return {"address": self._transport.address}

    async def _join(self, address: str) -> dict[str, Any]:
        assert self._transport is not None
        peer = await self._transport.connect(address)
        peer.admit(EPOCH, lambda spans: True)
        return {}

    def _digest_of(self, case: str, turn: int) -> dict[str, Any]:
        """What a receiver does to check a hand-over, and how long it takes."""
        pairs = self._turns[case].pairs(turn)
        begin = time.perf_counter()
        digest = self._digest(Spans(offsets=pairs.destination, sizes=pairs.sizes))
        return {"digest": digest, "seconds": time.perf_counter() - begin}

    def _close_door(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def _close_yardsticks(self) -> None:
        while self._yardsticks:
            self._yardsticks.pop().close()

    def close(self) -> None:
        self._close_yardsticks()
        self._close_door()
        self._pool.close()


async def serve(answers: TextIO) -> None:
    lines: asyncio.StreamReader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    end = ReceivingEnd(**json.loads(await lines.readline()))
    try:
        _say(answers, {})
        while line := await lines.readline():
            try:
                _say(answers, await end.answer(**json.loads(line)))
            except Exception as error:
                _say(answers, {"error": f"{type(error).__name__}: {error}"})
    finally:
        end.close()


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        asyncio.run(serve(answers))


if __name__ == "__main__":
    main()
