"""Pool files: who may map them, and what happens when their owner dies."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import uvloop

from cluster.errors import ConfigError, TransferFailed
from cluster.types import Incarnation
from kv_transfer.geometry import SpanPairs
from kv_transfer.pool import FilePool, PoolConfig, sweep
from kv_transfer.shared_memory_transport import SharedMemoryTransport

OWNER = """
import sys
from pathlib import Path
from kv_transfer.pool import FilePool, PoolConfig
from kv_transfer.shared_memory_transport import SharedMemoryTransport
pool = FilePool(PoolConfig(incarnation="owner", num_bytes=8192, run_dir=Path(sys.argv[1])))
pool.buffer[:4] = b"mine"
print(SharedMemoryTransport(pool).address, flush=True)
sys.stdin.read()
pool.close()
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
async def transport(tmp_path: Path) -> AsyncIterator[SharedMemoryTransport]:
    pool = open_pool(tmp_path)
    transport = SharedMemoryTransport(pool)
    yield transport
    transport.close()
    pool.close()


def open_pool(run_dir: Path, num_bytes: int = 8192) -> FilePool:
    return FilePool(PoolConfig(incarnation=Incarnation("us"), num_bytes=num_bytes, run_dir=run_dir))


def address_of(owner: subprocess.Popen[str]) -> str:
    assert owner.stdout is not None
    return owner.stdout.readline().strip()


def array(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@pytest.mark.slow
async def test_bytes_reach_another_process(
    tmp_path: Path, owner: subprocess.Popen[str], transport: SharedMemoryTransport
) -> None:
    address = address_of(owner)
    peer = await transport.connect(address)
    with (tmp_path / "kv-us").open("r+b") as file:
        file.seek(100)
        file.write(b"ours")
    pairs = SpanPairs(source=array(100), destination=array(4), sizes=array(4))
    write = peer.write(pairs, epoch=1, digest=True, may_start=lambda: True)
    landed = await asyncio.wrap_future(write)
    assert landed.num_bytes == 4
    assert (tmp_path / "kv-owner").read_bytes()[:8] == b"mineours"
    assert await transport.connect(address) is peer


@pytest.mark.slow
async def test_a_killed_owner_is_seen_and_its_file_swept(
    tmp_path: Path, owner: subprocess.Popen[str], transport: SharedMemoryTransport
) -> None:
    address = address_of(owner)
    peer = await transport.connect(address)
    assert sweep(tmp_path) == []
    assert not peer.life.is_over
    os.kill(owner.pid, signal.SIGKILL)
    await asyncio.wait_for(peer.life.wait(), 1)
    assert sweep(tmp_path) == ["kv-owner"]
    assert os.listdir(tmp_path) == ["kv-us"]
    with pytest.raises(TransferFailed):
        await transport.connect(address)


@pytest.mark.slow
def test_a_successor_sweeps_what_a_killed_owner_left(
    tmp_path: Path, owner: subprocess.Popen[str]
) -> None:
    address_of(owner)  # it has its pool
    os.kill(owner.pid, signal.SIGSTOP)
    with contextlib.closing(FilePool(config_of(tmp_path, "next"))):
        assert sorted(os.listdir(tmp_path)) == ["kv-next", "kv-owner"]  # stopped is not dead
    owner.kill()
    owner.wait()
    with contextlib.closing(FilePool(config_of(tmp_path, "last"))):
        assert os.listdir(tmp_path) == ["kv-last"]


def config_of(run_dir: Path, name: str) -> PoolConfig:
    return PoolConfig(incarnation=Incarnation(name), num_bytes=8192, run_dir=run_dir)


@pytest.mark.slow
async def test_a_stopped_owner_is_not_dead(
    tmp_path: Path, owner: subprocess.Popen[str], transport: SharedMemoryTransport
) -> None:
    peer = await transport.connect(address_of(owner))
    os.kill(owner.pid, signal.SIGSTOP)
    assert sweep(tmp_path) == []
    assert not peer.life.is_over
    os.kill(owner.pid, signal.SIGKILL)
    await asyncio.wait_for(peer.life.wait(), 1)


@pytest.mark.slow
async def test_another_process_with_the_pid_of_a_dead_owner_is_not_taken_for_it(
    tmp_path: Path, owner: subprocess.Popen[str], transport: SharedMemoryTransport
) -> None:
    address = address_of(owner)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    reused = address.replace(f":{owner.pid}:", f":{os.getpid()}:")
    with pytest.raises(TransferFailed, match="dead"):
        await transport.connect(reused)


async def test_foreign_files_are_refused(tmp_path: Path, transport: SharedMemoryTransport) -> None:
    good = transport.address
    _, num_bytes, pid, namespace, boot_id = good.split(":")
    (tmp_path / "kv-open").write_bytes(bytes(8192))
    (tmp_path / "kv-open").chmod(0o644)
    (tmp_path / "kv-link").symlink_to(tmp_path / "kv-us")
    os.mkfifo(tmp_path / "kv-fifo", 0o600)
    (tmp_path / "kv-dir").mkdir(0o600)
    for name in ("kv-open", "kv-link", "kv-fifo", "kv-dir", "kv-none", "../kv-us", "kv-a/b", "x"):
        with pytest.raises(TransferFailed):
            await transport.connect(":".join((name, num_bytes, pid, namespace, boot_id)))
    for address in (
        "",
        "kv-us",
        f"kv-us:{int(num_bytes) + 1}:{pid}:{namespace}:{boot_id}",
        f"kv-us:{num_bytes}:{pid}:1:{boot_id}",
        f"kv-us:{num_bytes}:{pid}:{namespace}:of-another-machine",
        f"kv-us:{num_bytes}:-1:{namespace}:{boot_id}",
        f"kv-us:{num_bytes}:99999999999999999999999:{namespace}:{boot_id}",
        f"kv-us:{num_bytes}:999999999:{namespace}:{boot_id}",
    ):
        with pytest.raises(TransferFailed):
            await transport.connect(address)


def test_a_pool_file_is_private_and_unlinked(tmp_path: Path) -> None:
    pool = open_pool(tmp_path)
    assert (tmp_path / "kv-us").stat().st_mode & 0o777 == 0o600
    pool.close()
    pool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_pool_without_room_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_blocks"):
        open_pool(tmp_path, num_bytes=1 << 50)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_death_is_seen_under_uvloop_too(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    async def main() -> None:
        pool = open_pool(tmp_path)
        transport = SharedMemoryTransport(pool)
        peer = await transport.connect(address_of(owner))
        os.kill(owner.pid, signal.SIGKILL)
        await asyncio.wait_for(peer.life.wait(), 1)
        transport.close()
        pool.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.slow
async def test_a_dead_peer_is_never_mapped(
    tmp_path: Path, owner: subprocess.Popen[str], transport: SharedMemoryTransport
) -> None:
    peer = await transport.connect(address_of(owner))
    os.kill(owner.pid, signal.SIGKILL)
    await asyncio.wait_for(peer.life.wait(), 1)
    pairs = SpanPairs(source=array(0), destination=array(0), sizes=array(4))
    write = peer.write(pairs, epoch=1, digest=False, may_start=lambda: True)
    with pytest.raises(TransferFailed, match="gone"):
        await asyncio.wrap_future(write)


async def test_a_pool_may_go_to_the_next_life_of_its_process(
    tmp_path: Path, transport: SharedMemoryTransport
) -> None:
    """Under another name, with what lies in it, and still owned."""
    config = PoolConfig(incarnation=Incarnation("old"), num_bytes=8192, run_dir=tmp_path)
    with contextlib.closing(FilePool(config)) as pool:
        before = SharedMemoryTransport(pool)
        pool.buffer[:4] = b"mine"
        before.close()
        pool.renew(Incarnation("new"))
        assert sweep(tmp_path) == []
        with pytest.raises(TransferFailed, match="no KV pool 'kv-old'"):
            await transport.connect(before.address)
        peer = await transport.connect(SharedMemoryTransport(pool).address)
        assert peer.incarnation == "new"
        assert (tmp_path / "kv-new").read_bytes()[:4] == b"mine"
        with pytest.raises(ConfigError, match="cannot name a KV pool"):
            pool.renew(Incarnation("../elsewhere"))
    assert os.listdir(tmp_path) == ["kv-us"]
