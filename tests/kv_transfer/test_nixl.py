"""NIXL between real processes: by kernel copies, by TCP, to the frozen, the dead and the reborn."""

import asyncio
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import ConfigError, TransferFailed
from cluster.types import Incarnation
from kv_transfer.conversion import conversion_between
from kv_transfer.doors import DoorSettings, open_doors
from kv_transfer.geometry import SpanPairs
from kv_transfer.nixl.address import NixlAddress
from kv_transfer.nixl.agent import SETTLE_TURNS
from kv_transfer.nixl.transport import NixlTransport
from kv_transfer.pool import FilePool, PoolConfig
from kv_transfer.span_copy import SpanCopier
from kv_transfer.transport import Landed, WriteRefused
from tests.kv_transfer.nixl_rig import KEY, NUM_BYTES, landed, open_pool, started, write

# What many containers do: process_vm_readv and process_vm_writev are not permitted.
WITHOUT_KERNEL_COPIES = """
import ctypes, platform, struct
read, write = {"x86_64": (310, 311), "aarch64": (270, 271)}[platform.machine()]
program = [(0x20, 0, 0, 0), (0x15, 2, 0, read), (0x15, 1, 0, write)]  # load the call's number
program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050001)]  # allow, or EPERM
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
head = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == libc.prctl(22, 2, head, 0, 0) == 0
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def by_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    """As between machines without RDMA: both ends take part."""
    monkeypatch.setenv("UCX_TLS", "tcp,self")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[FilePool]:
    pool = open_pool(tmp_path)
    pool.memory[:] = 7
    yield pool
    pool.close()


@pytest.fixture
async def transport(pool: FilePool) -> AsyncIterator[NixlTransport]:
    transport = NixlTransport(pool, host="127.0.0.1", key=KEY)
    yield transport
    transport.close()


async def test_bytes_reach_a_process_that_stands_still(
    tmp_path: Path, transport: NixlTransport
) -> None:
    """By kernel copies nothing of the receiver's is needed."""
    with started(tmp_path) as owner:
        peer = await transport.connect(owner.address)
        assert peer.is_one_sided
        owner.signal(signal.SIGSTOP)
        await landed(write(peer, 2**20, offset=4096))
        assert owner.holds(4096, 2**20) == b"\7" * 2**20
        assert not any(owner.holds(0, 4096))
        assert not peer.life.is_over


async def test_without_kernel_copies_another_lane_is_taken(
    tmp_path: Path, transport: NixlTransport
) -> None:
    with started(tmp_path, before=WITHOUT_KERNEL_COPIES) as owner:
        peer = await transport.connect(owner.address)
        assert not peer.is_one_sided
        await landed(write(peer, 2**20))
        assert owner.holds(0, 2**20) == b"\7" * 2**20


@pytest.mark.usefixtures("by_tcp")
async def test_a_lane_over_tcp_is_left_to_our_own_where_that_is_wished(tmp_path: Path) -> None:
    pool = FilePool(
        PoolConfig(incarnation=Incarnation("us"), num_bytes=NUM_BYTES, run_dir=tmp_path)
    )
    transport = NixlTransport(pool, host="127.0.0.1", key=KEY, allows_two_sided=False)
    with started(tmp_path) as owner, pytest.raises(TransferFailed, match="'tcp' is better"):
        await transport.connect(owner.address)
    transport.close()
    pool.close()


@pytest.mark.usefixtures("by_tcp")
async def test_a_process_that_stands_still_holds_up_no_other(
    tmp_path: Path, transport: NixlTransport
) -> None:
    with started(tmp_path, "frozen") as frozen, started(tmp_path, "other") as other:
        slow, fast = [await transport.connect(owner.address) for owner in (frozen, other)]
        assert not slow.is_one_sided
        frozen.signal(signal.SIGSTOP)
        held, behind = write(slow, NUM_BYTES), write(slow)
        for _ in range(3):
            await landed(write(fast, 2**20))
        assert not held.done()
        assert behind.cancel(), "writes to one peer land in order"
        assert not slow.life.is_over
        frozen.signal(signal.SIGCONT)
        assert (await landed(held)).num_bytes == NUM_BYTES
        assert frozen.holds(NUM_BYTES - 8, 8) == other.holds(2**20 - 8, 8) == b"\7" * 8


async def test_a_killed_process_is_seen_and_its_successor_reached_at_once(
    tmp_path: Path, transport: NixlTransport
) -> None:
    with started(tmp_path, "first") as first, started(tmp_path, "second") as second:
        peer = await transport.connect(first.address)
        futures = [write(peer, NUM_BYTES) for _ in range(8)]
        futures.append(write(peer, NUM_BYTES, may_start=first.kill))
        writes = [asyncio.wrap_future(future) for future in futures]
        await writes[0]
        first.signal(signal.SIGKILL)  # in the middle of the next
        async with asyncio.timeout(5):
            await peer.life.wait()
            ends = await asyncio.gather(*writes, return_exceptions=True)
        assert all(isinstance(end, Landed | TransferFailed) for end in ends)
        assert isinstance(ends[0], Landed)
        assert isinstance(ends[-1], TransferFailed)
        with pytest.raises(TransferFailed, match="dead"):
            await transport.connect(first.address)
        successor = await transport.connect(second.address)
        await landed(write(successor))
        assert second.holds(0, 4) == b"\7" * 4


@pytest.mark.usefixtures("by_tcp")
async def test_a_write_in_flight_to_a_killed_process_fails(
    tmp_path: Path, transport: NixlTransport
) -> None:
    with started(tmp_path) as owner:
        peer = await transport.connect(owner.address)
        owner.signal(signal.SIGSTOP)
        begun = asyncio.Event()
        tell = asyncio.get_running_loop().call_soon_threadsafe
        held, behind = (
            write(peer, NUM_BYTES, may_start=lambda: tell(begun.set) or True),
            write(peer),
        )
        await begun.wait()
        owner.signal(signal.SIGKILL)
        for one in (held, behind):
            with pytest.raises(TransferFailed):
                await landed(one)
        async with asyncio.timeout(1):
            await peer.life.wait()


@pytest.mark.usefixtures("by_tcp")
async def test_closing_does_not_wait_for_a_process_that_stands_still(
    tmp_path: Path, transport: NixlTransport
) -> None:
    with started(tmp_path) as owner:
        peer = await transport.connect(owner.address)
        owner.signal(signal.SIGSTOP)
        begun = asyncio.Event()
        tell = asyncio.get_running_loop().call_soon_threadsafe
        held, behind = (
            write(peer, NUM_BYTES, may_start=lambda: tell(begun.set) or True),
            write(peer),
        )
        await begun.wait()
        async with asyncio.timeout(5):
            await asyncio.to_thread(transport.close)
        assert isinstance(held.exception(), TransferFailed)
        assert behind.cancelled()
        assert isinstance(write(peer).exception(), WriteRefused)


async def test_a_process_that_never_answers_is_given_up(
    tmp_path: Path, transport: NixlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kv_transfer.nixl.transport.GREETING_S", 0.2)
    with started(tmp_path) as owner:
        address = owner.address
        owner.signal(signal.SIGSTOP)
        with pytest.raises(TransferFailed, match="does not answer"):
            await transport.connect(address)
        owner.signal(signal.SIGCONT)
        monkeypatch.undo()
        await landed(write(await transport.connect(owner.address)))


@pytest.mark.parametrize("wire_dtype", [None, "int8"])
async def test_converted_kv_lands_as_by_every_other_transport(
    tmp_path: Path, transport: NixlTransport, pool: FilePool, wire_dtype: str | None
) -> None:
    conversion = conversion_between("bfloat16", "float32", 16, wire_dtype=wire_dtype)
    assert conversion is not None
    num_spans, span_bytes = 5000, 4 * conversion.source_row_bytes  # more than one stageful
    numbers = np.random.default_rng(0)
    pool.memory[: num_spans * span_bytes] = numbers.integers(0, 120, num_spans * span_bytes)
    pairs = SpanPairs(
        source=numbers.permutation(num_spans) * span_bytes,
        destination=np.arange(num_spans) * 5 * conversion.destination_row_bytes,
        sizes=np.full(num_spans, span_bytes),
        conversion=conversion,
    )
    expected = np.zeros(2 * 2**20, dtype=np.uint8)
    digest = SpanCopier().copy(pool.memory, expected, pairs, digest=True)
    there = open_pool(tmp_path, "there")
    other = NixlTransport(there, host="127.0.0.1", key=KEY)
    try:
        peer = await transport.connect(other.address)
        written = await landed(peer.write(pairs, epoch=1, digest=True, may_start=lambda: True))
        assert written.digest == digest
        assert np.array_equal(there.memory[: len(expected)], expected)
    finally:
        other.close()
        there.close()


async def test_every_transfer_is_released(
    tmp_path: Path, transport: NixlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that ended, those that were refused, and those that failed."""
    import nixl

    held: list[object] = []
    for name, keep in (("__init__", held.append), ("release", held.remove)):
        original = getattr(nixl.nixl_xfer_handle, name)

        def counted(handle: object, *given: object, original=original, keep=keep) -> None:
            original(handle, *given)
            keep(handle)

        monkeypatch.setattr(nixl.nixl_xfer_handle, name, counted)
    with started(tmp_path) as owner:
        peer = await transport.connect(owner.address)
        await landed(write(peer))
        with pytest.raises(WriteRefused):
            await landed(write(peer, may_start=lambda: False))
        owner.kill()
        with pytest.raises(TransferFailed):
            await landed(write(peer))
    assert held == []


async def test_a_peer_that_was_left_is_met_again_only_when_that_is_done(
    tmp_path: Path, transport: NixlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoints made while UCX still takes the last one down have ended whole processes."""
    import nixl

    calls: list[str] = []
    for name in ("get_new_notifs", "add_remote_agent", "remove_remote_agent"):
        original = getattr(nixl.nixl_agent, name)

        def counted(agent: object, *given: object, name=name, original=original) -> object:
            calls.append(name)
            return original(agent, *given)

        monkeypatch.setattr(nixl.nixl_agent, name, counted)
    with started(tmp_path) as owner:
        peer = await transport.connect(owner.address)
        owner.kill()
        ends = [asyncio.wrap_future(write(peer, NUM_BYTES)) for _ in range(4)]
        await asyncio.gather(*ends, return_exceptions=True)
    for met, left in zip(_places(calls, "add")[1:], _places(calls, "remove"), strict=False):
        assert calls[left:met].count("get_new_notifs") >= SETTLE_TURNS


def _places(calls: list[str], beginning: str) -> list[int]:
    return [at for at, call in enumerate(calls) if call.startswith(beginning)]


@pytest.mark.prove
def test_peers_that_are_killed_do_not_take_us_along() -> None:
    """A hundred and fifty, in the midst of writes: in a process of its own, which may crash."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.kv_transfer.nixl_kills", "150"], timeout=280
    )
    assert ended.returncode == 0


async def test_an_address_that_was_not_sealed_here_is_refused(
    tmp_path: Path, transport: NixlTransport
) -> None:
    with started(tmp_path) as owner:
        good = NixlAddress.unsealed(owner.address, KEY)
        with pytest.raises(TransferFailed, match="same secrets"):
            await transport.connect(good.sealed(b"of another cluster"))
        body, _, seal = owner.address.rpartition(":")
        with pytest.raises(TransferFailed, match="changed on its way"):
            await transport.connect(body.replace("owner:", "other:") + ":" + seal)
        for text in ("", "nobody", "x" * 2**20, "é" * 9, ":" * 9):
            with pytest.raises(TransferFailed):
                await transport.connect(text)
        # What has the seal but no sense: another version's, or a bug of ours.
        for wrong in (
            good._replace(metadata=b""),
            good._replace(metadata=secrets.token_bytes(300)),
            good._replace(greeting=b"another"),
            good._replace(greeting_at=64),
            good._replace(num_bytes=0),
        ):
            with pytest.raises(TransferFailed):
                await transport.connect(wrong.sealed(KEY))
        await landed(write(await transport.connect(owner.address)))
        cut = good._replace(incarnation=Incarnation("cut"), metadata=good.metadata[:-9])
        with pytest.raises(TransferFailed):
            await transport.connect(cut.sealed(KEY))


async def test_a_machine_that_cannot_be_watched_lives_until_it_is_forgotten(
    tmp_path: Path, transport: NixlTransport
) -> None:
    with started(tmp_path) as owner:
        near = NixlAddress.unsealed(owner.address, KEY)
        process = near.process._replace(boot_id="another machine")
        peer = await transport.connect(near._replace(process=process).sealed(KEY))
        await landed(write(peer))
        owner.signal(signal.SIGSTOP)
        await landed(write(peer))
        peer.life.end()
        with pytest.raises(WriteRefused):
            await landed(write(peer))


async def test_a_lost_connection_is_not_a_death(tmp_path: Path, transport: NixlTransport) -> None:
    with started(tmp_path) as owner:
        near = NixlAddress.unsealed(owner.address, KEY)
        process = near.process._replace(boot_id="another machine")
        peer = await transport.connect(near._replace(process=process).sealed(KEY))
        owner.kill()
        for _ in range(2):
            with pytest.raises(TransferFailed):
                await landed(write(peer))
        assert not peer.life.is_over


def test_a_missing_dependency_says_what_to_install(
    pool: FilePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)
    with pytest.raises(ConfigError, match=r"pip install nixl"):
        open_doors(["nixl"], pool, DoorSettings(key=KEY))


def test_lanes_that_do_not_start_are_an_error_of_the_configuration(
    pool: FilePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCX_TLS", "cma")
    with pytest.raises(ConfigError, match="UCX_LOG_LEVEL"):
        NixlTransport(pool, host="127.0.0.1", key=KEY)
