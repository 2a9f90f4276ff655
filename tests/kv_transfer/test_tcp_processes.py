"""A peer over TCP that is frozen or killed: its writes fail soon, and nobody else's are held up."""

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.errors import TransferFailed
from kv_transfer.tcp import dial as tcp_dial
from kv_transfer.tcp import link as tcp_link
from kv_transfer.tcp.transport import TcpPeer
from kv_transfer.transport import WriteRefused
from tests.kv_transfer import tcp_process
from tests.kv_transfer.tcp_rig import KEY, NUM_BYTES, End, landed, until, write

WORKER = Path(__file__).with_name("tcp_process.py")

pytestmark = pytest.mark.slow


class Other:
    """A process that we may write to."""

    def __init__(self, process: Process, run_dir: Path, address: str) -> None:
        self.process = process
        self.address = address
        self._file = run_dir / f"kv-{address.split(':')[2]}"

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    async def freeze(self) -> None:
        """Returns when every thread of it stands still."""
        self.signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")
        await until(lambda: all(state_of(task) == "T" for task in tasks.iterdir()))

    async def tell(self, line: str, answer: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        await self.hear(answer)

    async def hear(self, answer: bytes) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            assert await self.process.stdout.readline() == answer + b"\n"

    def has(self, offset: int, byte: int) -> bool:
        return self._file.read_bytes()[offset] == byte


def state_of(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


async def spawn(name: str, run_dir: Path) -> Other:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(WORKER), name, str(run_dir), str(NUM_BYTES), KEY.decode(),
        stdin=PIPE, stdout=PIPE, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return Other(process, run_dir, (await process.stdout.readline()).decode().strip())


@pytest.fixture
async def us(tmp_path: Path) -> AsyncIterator[End]:
    end = End("us", tmp_path)
    end.memory[:] = 7
    yield end
    end.close()


@pytest.fixture
async def others(tmp_path: Path, us: End) -> AsyncIterator[list[Other]]:
    others = list(await asyncio.gather(*(spawn(name, tmp_path) for name in ("first", "second"))))
    yield others
    for other in others:
        if other.process.returncode is None:
            other.process.kill()
        await other.process.communicate()


async def peer_of(us: End, other: Other) -> TcpPeer:
    await other.tell(us.transport.address, b"admitted")
    return await us.transport.connect(other.address)


async def test_a_peer_that_is_killed_in_mid_write_fails_it_at_once(
    us: End, others: list[Other]
) -> None:
    first, second = others
    to_first, to_second = await peer_of(us, first), await peer_of(us, second)
    await first.freeze()
    stuck = [write(to_first, (0, 0, NUM_BYTES)) for _ in range(4)]  # more than sockets hold
    begin = time.monotonic()
    await landed(write(to_second, (0, 0, NUM_BYTES)))  # while the first is frozen
    assert time.monotonic() - begin < tcp_link.STALL_S / 2
    assert not any(future.done() for future in stuck)
    first.signal(signal.SIGKILL)
    begin = time.monotonic()
    for future in stuck:
        with pytest.raises(TransferFailed):
            await landed(future)
    assert time.monotonic() - begin < 1
    async with asyncio.timeout(1):
        await to_first.life.wait()
    with pytest.raises(WriteRefused, match="dead"):
        await landed(write(to_first, (0, 0, 9)))
    with pytest.raises(TransferFailed):
        await us.transport.connect(first.address)
    await until(lambda: us.counters["num_lost_streams"] == 1)  # and its own to us are gone
    await landed(write(to_second, (0, 0, 9)))


async def test_a_frozen_peer_is_given_up_and_dialled_again_once_it_wakes(
    us: End, others: list[Other], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = others[0]
    peer = await peer_of(us, frozen)
    await landed(write(peer, (0, 0, 9)))
    await frozen.freeze()
    with monkeypatch.context() as impatient:
        impatient.setattr(tcp_link, "STALL_S", 0.3)
        impatient.setattr(tcp_dial, "CONNECT_S", 0.3)
        stuck = [write(peer, (0, 0, NUM_BYTES)) for _ in range(6)]  # more than sockets hold
        for future in stuck:
            with pytest.raises(TransferFailed, match="frozen"):
                await landed(future)
        assert isinstance(stuck[-1].exception(), WriteRefused), "it was dialled for, once more"
        with pytest.raises(WriteRefused, match="frozen"):  # nor does it answer a new call
            await landed(write(peer, (0, 0, 9)))
    assert not peer.life.is_over, "frozen is not dead"
    frozen.signal(signal.SIGCONT)
    await landed(write(peer, (0, NUM_BYTES - 9, 9)))
    assert frozen.has(NUM_BYTES - 1, 7)


async def test_who_was_frozen_itself_calls_nobody_frozen(others: list[Other]) -> None:
    """Both stand still, the writer for longer than it lets another be silent."""
    writer, receiver = others
    await receiver.tell(writer.address, b"admitted")
    await writer.tell(receiver.address, b"admitted")  # and connected
    await receiver.freeze()
    await writer.tell(f"write {receiver.address}", b"writing")
    await writer.freeze()
    await asyncio.sleep(2 * tcp_process.STALL_S)
    for other in (writer, receiver):
        other.signal(signal.SIGCONT)
    await writer.hear(b"landed")
