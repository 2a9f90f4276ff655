"""Workers in miniature whose pools differ: the same prompt's KV in each, and hand-overs between
them, pool by pool, in one process or from several."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from cluster.types import Grant, Incarnation, KvLayout, Written
from kv_transfer.conversion import Conversion
from kv_transfer.doors import DoorSettings, open_doors
from kv_transfer.incoming import ReservationTable
from kv_transfer.memory_transport import MemoryNetwork, MemoryTransport
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.pool import FilePool, KvPool, PoolConfig
from kv_transfer.shards import routes, shards
from kv_transfer.transport import Transport

POISON = 0xA5
KEY = b"of the cluster"

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__, "kv_transfer.collective.transport"])

OpenPool = Callable[[str, int], tuple[Any, Transport]]  # a name and a size


class Prompt(NamedTuple):
    """What is handed over: the tokens [start, stop) of a prompt that both ends have blocks for."""

    start: int
    stop: int
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Its layout if it had one pool, how many it has, and where the prompt lies in each."""

    layout: KvLayout
    degree: int
    blocks: tuple[int, ...]

    @property
    def shards(self) -> tuple[KvLayout, ...]:
        return shards(self.layout, self.degree)


def worker_of(layout: KvLayout, degree: int, prompt: Prompt) -> Worker:
    """Its blocks are scattered, some of them adjacent."""
    num_blocks = -(-prompt.stop // layout.block_size)
    order = np.random.default_rng(layout.block_size).permutation(layout.num_blocks - 1)
    blocks = [int(first) for one in order[::2] for first in (one, one + 1)]
    return Worker(layout=layout, degree=degree, blocks=tuple(dict.fromkeys(blocks))[:num_blocks])


def numbers(layout: KvLayout, prompt: Prompt) -> np.ndarray:
    """[layers, planes, tokens, heads of the model, head_dim], float32"""
    shape = (layout.num_layers, layout.num_planes, prompt.stop, layout.num_model_heads)
    rng = np.random.default_rng(prompt.seed)
    return rng.standard_normal((*shape, layout.head_dim), dtype=np.float32)


def as_dtypes(values: np.ndarray, *dtypes: str) -> np.ndarray:
    """The bytes of rows that had one dtype after the other; the last axis becomes bytes."""
    data, row = values.reshape(-1).view(np.uint8), values.shape[-1]
    before = "float32"
    for wire, after in zip(dtypes[::2], dtypes[1::2], strict=True):
        step = Conversion(source_dtype=before, wire_dtype=wire, destination_dtype=after, row=row)
        data, before = step.decode(step.encode(data)), after
    return data.reshape(*values.shape[:-1], -1)


def slots(memory: Any, layout: KvLayout, worker: Worker) -> np.ndarray:
    """[layers, planes, room for tokens, heads here, bytes of a head]: a copy"""
    shape = (layout.num_layers, layout.num_planes, layout.num_blocks, layout.block_size)
    blocks = memory.reshape(*shape, layout.num_kv_heads, -1)[:, :, list(worker.blocks)]
    return blocks.reshape(*shape[:2], -1, *blocks.shape[4:])  # type: ignore[no-any-return]


def fill(memory: Any, layout: KvLayout, worker: Worker, prompt: Prompt) -> None:
    """The prompt's KV as this shard of a worker computes it."""
    rows = as_dtypes(numbers(layout, prompt), layout.dtype, layout.dtype)
    mine = rows[:, :, :, layout.heads.start : layout.heads.stop]
    room = np.zeros((*mine.shape[:2], len(worker.blocks) * layout.block_size, *mine.shape[3:]))
    room = room.astype(np.uint8)
    room[:, :, : prompt.stop] = mine
    shape = (layout.num_layers, layout.num_planes, layout.num_blocks, layout.block_size)
    view = memory.reshape(*shape, layout.num_kv_heads, -1)
    view[:, :, list(worker.blocks)] = room.reshape(
        *shape[:2], len(worker.blocks), layout.block_size, *room.shape[3:]
    )


class Writers(Protocol):
    """The pools of the worker that computed the prompt."""

    async def open(self, worker: Worker, prompt: Prompt, ranks: Sequence[int]) -> list[str]:
        """Addresses of the pools of these ranks, filled."""
        ...

    async def write(self, rank: int, grant: Grant, address: str, layout: KvLayout) -> Written: ...

    async def close(self) -> None: ...


class LocalWriters:
    def __init__(self, open_pool: OpenPool) -> None:
        self._open_pool = open_pool
        self._ends: dict[int, tuple[KvPool, Transport]] = {}

    async def open(self, worker: Worker, prompt: Prompt, ranks: Sequence[int]) -> list[str]:
        self._worker, self._prompt = worker, prompt
        for rank in ranks:
            layout = worker.shards[rank]
            pool, transport = self._open_pool(f"source-{rank}", layout.pool_bytes)
            fill(pool.memory, layout, worker, prompt)
            self._ends[rank] = (pool, transport)
        return [transport.address for _, transport in self._ends.values()]

    async def write(self, rank: int, grant: Grant, address: str, layout: KvLayout) -> Written:
        worker, prompt = self._worker, self._prompt
        outgoing = OutgoingTransfer(
            layout=worker.shards[rank], blocks=worker.blocks, num_tokens=prompt.stop
        )
        half = (grant.start + grant.stop) // 2
        outgoing.computed_all(half)
        outgoing.grant(grant, await self._ends[rank][1].connect(address), layout)
        for layer in range(layout.num_layers):
            outgoing.computed(layer, prompt.stop)
        return await outgoing.landed()

    async def close(self) -> None:
        for pool, transport in self._ends.values():
            transport.close()
            pool.close()
        self._ends.clear()


class ProcessWriters:
    """The same in a process of its own, which serves one hand-over after the other."""

    def __init__(self, control: Connection) -> None:
        self._control = control
        self._lock = asyncio.Lock()

    async def open(self, worker: Worker, prompt: Prompt, ranks: Sequence[int]) -> list[str]:
        return list(await self._ask("open", worker, prompt, ranks))

    async def write(self, rank: int, grant: Grant, address: str, layout: KvLayout) -> Written:
        written: Written = await self._ask("write", rank, grant, address, layout)
        return written

    async def close(self) -> None:
        await self._ask("close")

    async def _ask(self, *words: Any) -> Any:
        async with self._lock:
            self._control.send(words)
            assert await asyncio.to_thread(self._control.poll, 30), "a writer says nothing"
            answer = self._control.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def writer_process(door: str, run_dir: Path) -> Iterator[ProcessWriters]:
    ours, theirs = _processes.Pipe()
    process = _processes.Process(target=_serve, args=(theirs, door, run_dir))
    process.start()
    theirs.close()
    try:
        yield ProcessWriters(ours)
    finally:
        ours.close()  # it ends by itself
        process.join(10)
        process.kill()
        process.close() if process.exitcode is not None else process.join()


def _serve(control: Connection, door: str, run_dir: Path) -> None:
    async def serve() -> None:
        writers = LocalWriters(partial(open_door, door, run_dir))
        while True:
            try:
                name, *words = await asyncio.to_thread(control.recv)
            except EOFError:
                return
            try:
                control.send(await getattr(writers, name)(*words))
            except Exception as error:
                control.send(RuntimeError(str(error)))

    asyncio.run(serve())


def open_door(door: str, run_dir: Path, name: str, num_bytes: int) -> tuple[FilePool, Transport]:
    config = PoolConfig(incarnation=Incarnation(name), num_bytes=num_bytes, run_dir=run_dir)
    pool = FilePool(config)
    [transport] = open_doors([door], pool, DoorSettings(key=KEY))
    return pool, transport


def open_in(network: MemoryNetwork, name: str, num_bytes: int) -> tuple[Any, Transport]:
    pool = network.pool(name, num_bytes)
    return pool, MemoryTransport(network, pool)


@asynccontextmanager
async def receiver_of(
    open_pool: OpenPool, rank: int, layout: KvLayout
) -> AsyncIterator[tuple[Any, Transport, ReservationTable]]:
    pool, transport = open_pool(f"destination-{rank}", layout.pool_bytes)
    pool.memory[:] = POISON
    table = ReservationTable(pool, layout, on_release=lambda blocks: None)
    try:
        yield pool, transport, table
        table.check()
    finally:
        table.close()
        transport.close()
        pool.close()


async def hand_over(
    writers: Sequence[Writers],
    open_pool: OpenPool,
    source: Worker,
    destination: Worker,
    prompt: Prompt,
    wire_dtype: str | None = None,
) -> list[tuple[KvLayout, np.ndarray]]:
    """Every receiving pool's layout and content, once all routes were written and verified. The
    ranks of the source lie on the writers in turn."""
    mine = [range(source.degree)[first :: len(writers)] for first in range(len(writers))]
    opened = [
        await one.open(source, prompt, ranks) for one, ranks in zip(writers, mine, strict=True)
    ]
    addresses = {
        rank: address
        for ranks, some in zip(mine, opened, strict=True)
        for rank, address in zip(ranks, some, strict=True)
    }
    async with AsyncExitStack() as stack:
        receivers = [
            await stack.enter_async_context(receiver_of(open_pool, rank, layout))
            for rank, layout in enumerate(destination.shards)
        ]

        async def transfer(rank: int, to: int) -> None:
            _, transport, table = receivers[to]
            peer = await transport.connect(addresses[rank])
            share = table.share_of(source.shards[rank], wire_dtype)
            with table.reserve(
                destination.blocks, prompt.start, prompt.stop, lease_s=30, peer=peer, share=share
            ) as reservation:
                writer = writers[rank % len(writers)]
                layout = destination.shards[to]
                await reservation.verify(
                    await writer.write(rank, reservation.grant, transport.address, layout)
                )

        async with asyncio.TaskGroup() as group:
            for route in routes(source.shards, destination.shards):
                group.create_task(transfer(*route))
        contents = [
            (table.layout, slots(np.array(pool.memory), table.layout, destination))
            for pool, _, table in receivers
        ]
        for one in writers:
            await one.close()
    return contents


def check(
    contents: Sequence[tuple[KvLayout, np.ndarray]],
    source: Worker,
    prompt: Prompt,
    wire_dtype: str | None = None,
) -> None:
    """Each pool holds its share of the reference, byte by byte, and nothing else was written."""
    for layout, found in contents:
        wire = wire_dtype or source.layout.dtype
        dtypes = (source.layout.dtype, source.layout.dtype, wire, layout.dtype)
        rows = as_dtypes(numbers(layout, prompt), *dtypes)
        expected = np.full_like(found, POISON)
        for layer in range(layout.num_layers):
            first = max(prompt.start, first_needed(layout.window(layer), prompt.stop))
            mine = rows[layer, :, first : prompt.stop, layout.heads.start : layout.heads.stop]
            expected[layer, :, first : prompt.stop] = mine
        assert np.array_equal(found, expected)


def first_needed(window: int | None, stop: int) -> int:
    """In words: a token at `stop` or up to 31 before it sees `window` tokens, its own among them;
    those are kept in runs of 32."""
    if window is None:
        return 0
    return max(0, (stop // 32 * 32 - window + 1) // 32 * 32)
