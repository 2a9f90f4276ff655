"""Every transport beside its yardsticks, between this process and a receiving one."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np

from bench.bare_memcpy import Memcpy
from bench.bare_nixl import NixlSender
from bench.bare_socket import SocketSender
from bench.kv_cases import Case, Turns
from bench.kv_far_end import FarEnd
from bench.kv_ways import EPOCH, KvWay, Rounds, TransportWay, WaySamples, first_touch, take_turns
from cluster.measurements import Measurements
from cluster.process import cache_folder
from cluster.types import Incarnation
from kv_transfer.doors import DoorSettings, open_doors
from kv_transfer.pool import FilePool, PoolConfig
from kv_transfer.span_copy import Bytes

FILL_BYTES = 2**20
TOUCH_S = 4.0
# What a transport is held against; memcpy runs beside every one, to show what the machine gives.
YARDSTICKS = {"tcp": "socket", "gloo": "socket", "nixl": "bare NIXL"}


@dataclass(slots=True, kw_only=True, eq=False)
class Outcome:
    """What one transport and its yardsticks needed."""

    door: str
    yardsticks: tuple[str, ...]
    connect_s: float
    first_touch: dict[str, float] = field(default_factory=dict)  # by way: bytes a second
    samples: dict[Case, dict[str, WaySamples]] = field(default_factory=dict)
    verify_s: dict[Case, float] = field(default_factory=dict)  # the receiver's check


class Arena:
    """Our pool, the receiving process and its pool: what every transport is tried on."""

    def __init__(
        self, *, run_dir: Path, pool_bytes: int, cases: Sequence[Case], num_tcp_streams: int
    ) -> None:
        self.cases = cases
        self.turns = {case: Turns(case, pool_bytes) for case in cases}
        config = PoolConfig(
            incarnation=Incarnation("bench-near"), num_bytes=pool_bytes, run_dir=run_dir
        )
        self.pool = FilePool(config)
        _fill(self.pool.memory)
        self.memcpy = Memcpy(pool_bytes)
        key = secrets.token_bytes(32)
        self.measurements = Measurements(cache_folder())
        self._settings = DoorSettings(
            key=key, num_tcp_streams=num_tcp_streams, measurements=self.measurements
        )
        self.far = FarEnd(
            run_dir=str(run_dir),
            pool_bytes=pool_bytes,
            cases=[str(case) for case in cases],
            key=key.hex(),
            num_tcp_streams=num_tcp_streams,
        )

    async def run(
        self, door: str, rounds: Callable[[Case], Rounds], say: Callable[[str], None]
    ) -> Outcome:
        """One transport, with the digest and without, beside its yardsticks.

        Raises ConfigError where the door's dependency is missing, RuntimeError where the bytes
        that arrived are not those that were sent.
        """
        begin = perf_counter()
        async with self._opened(door) as (plain, digested):
            connect_s = perf_counter() - begin
            async with self._yardsticks(door) as yardsticks:
                names = tuple(way.name for way in yardsticks)
                outcome = Outcome(door=door, yardsticks=names, connect_s=connect_s)
                ways = {way.name: way for way in (self.memcpy, *yardsticks, plain, digested)}
                await asyncio.to_thread(self._touch, ways.values(), outcome)
                for case in self.cases:
                    say(f"{door}: {case}")
                    outcome.samples[case] = await asyncio.to_thread(
                        self._take_turns, ways.values(), case, rounds(case)
                    )
                    outcome.verify_s[case] = await self._verify(digested, self.turns[case])
        return outcome

    def close(self) -> None:
        self.pool.close()

    def _take_turns(
        self, ways: Iterable[KvWay], case: Case, rounds: Rounds
    ) -> dict[str, WaySamples]:
        return take_turns(list(ways), self.turns[case], rounds, (os.getpid(), self.far.pid))

    def _touch(self, ways: Iterable[KvWay], outcome: Outcome) -> None:
        turns = self.turns[max(self.cases, key=lambda case: case.span_bytes)]
        outcome.first_touch.update({way.name: first_touch(way, turns, TOUCH_S) for way in ways})

    async def _verify(self, way: TransportWay, turns: Turns) -> float:
        """Seconds that the receiver's check of one move takes."""
        await asyncio.to_thread(way.move, turns, 0)
        there = await self.far.ask("digest", case=str(turns.case), turn=0)
        if way.landed is None or there["digest"] != way.landed.digest:
            raise RuntimeError(f"{way.name}: other bytes arrived than were sent ({turns.case}).")
        return float(there["seconds"])

    @contextlib.asynccontextmanager
    async def _opened(self, door: str) -> AsyncIterator[tuple[TransportWay, TransportWay]]:
        [transport] = open_doors([door], self.pool, self._settings)
        try:
            there = await self.far.ask("open_door", door=door)
            peer = await transport.connect(there["address"])
            await self.far.ask("join", address=transport.address)
            peer.admit(EPOCH, lambda spans: True)
            yield TransportWay(peer, digest=False), TransportWay(peer, digest=True)
        finally:
            transport.close()
            await self.far.ask("close_door")

    @contextlib.asynccontextmanager
    async def _yardsticks(self, door: str) -> AsyncIterator[list[KvWay]]:
        name, num_streams = YARDSTICKS.get(door, "memcpy"), self._settings.num_tcp_streams
        names = [name, f"socket x{num_streams}"] if door == "tcp" and num_streams > 1 else [name]
        opened = [await self._yardstick(name) for name in names]
        try:
            yield opened
        finally:
            for way in opened:
                way.close()
            await self.far.ask("close_yardsticks")

    async def _yardstick(self, name: str) -> KvWay:
        if name == "memcpy":
            return self.memcpy
        if name == "bare NIXL":
            there = await self.far.ask("open_nixl")
            metadata = bytes.fromhex(there["metadata"])
            return NixlSender(self.pool.memory, metadata=metadata, address=there["address"])
        num_streams = int(name.partition(" x")[2] or 1)
        there = await self.far.ask("open_socket", num_streams=num_streams)
        return SocketSender(self.pool.memory, there["port"], num_streams=num_streams)


def _fill(memory: Bytes) -> None:
    """Random bytes, no two pieces alike."""
    piece = np.random.default_rng(0).integers(0, 256, FILL_BYTES, dtype=np.uint8)
    for number, first in enumerate(range(0, len(memory), FILL_BYTES)):
        here = memory[first : first + FILL_BYTES]
        here[:] = piece[: len(here)]
        here[:8].view(np.int64)[:] = number
