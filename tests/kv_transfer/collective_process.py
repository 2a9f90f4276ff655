"""A receiver in miniature: a process of its own that is written to by gloo.

All are forked from one that has imported torch, which takes seconds. Takes `admit`,
`admit and freeze` (it stops itself once the next write is announced), `revoke` and `sum` (of what
lies in its pool).
"""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cluster.types import Incarnation
from kv_transfer.collective.transport import CollectiveTransport
from kv_transfer.geometry import Spans
from kv_transfer.pool import FilePool, PoolConfig

KEY = b"of the cluster"
NUM_BYTES = 8 << 20
EPOCH = 1

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


def open_pool(incarnation: str, run_dir: Path) -> FilePool:
    return FilePool(
        PoolConfig(incarnation=Incarnation(incarnation), num_bytes=NUM_BYTES, run_dir=run_dir)
    )


@dataclass
class Receiver:
    process: Any
    control: Connection
    address: str

    async def ask(self, *words: str) -> Any:
        self.control.send(words)
        return await self.hear()

    async def hear(self) -> Any:
        assert await asyncio.to_thread(self.control.poll, 30), "it says nothing"
        return self.control.recv()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)


@contextmanager
def receiver(run_dir: Path, incarnation: str) -> Iterator[Receiver]:
    ours, theirs = _processes.Pipe()
    process = _processes.Process(target=_main, args=(theirs, run_dir, incarnation))
    process.start()
    theirs.close()
    try:
        assert ours.poll(60), "it does not start"
        yield Receiver(process, ours, ours.recv())
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def _main(control: Connection, run_dir: Path, incarnation: str) -> None:
    asyncio.run(_serve(control, run_dir, incarnation))


async def _serve(control: Connection, run_dir: Path, incarnation: str) -> None:
    pool = open_pool(incarnation, run_dir)
    transport = CollectiveTransport("gloo", pool, host="127.0.0.1", key=KEY)
    control.send(transport.address)

    def freeze(spans: Spans) -> bool:
        control.send("frozen")
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread goes no further
        return True

    while True:
        match await asyncio.to_thread(control.recv):
            case "admit", address:
                (await transport.connect(address)).admit(EPOCH, lambda spans: True)
                control.send("admitted")
            case "admit and freeze", address:
                (await transport.connect(address)).admit(EPOCH, freeze)
                control.send("admitted")
            case "revoke", address:
                control.send((await transport.connect(address)).revoke(EPOCH))
            case ("sum",):
                control.send(int(pool.memory.sum()))
