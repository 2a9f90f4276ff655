"""Process groups as a transport: what a receiver lets land, and whom it lets in."""

import asyncio
import errno
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import ConfigError, TransferFailed
from cluster.lateness import Limit
from cluster.types import Incarnation
from kv_transfer.collective import line as collective_line
from kv_transfer.collective.line import Line, LineAnswer, WriteHeader, rank_proof
from kv_transfer.collective.process_group import GroupMaker, ProcessGroup, Rank
from kv_transfer.collective.receiver import MAX_STRANGERS
from kv_transfer.collective.transport import CollectiveTransport
from kv_transfer.conversion import Conversion
from kv_transfer.device_pool import DevicePool
from kv_transfer.doors import DoorSettings, open_doors, open_pool
from kv_transfer.geometry import SpanPairs, Spans
from kv_transfer.pool import FilePool, PoolConfig
from kv_transfer.span_copy import SpanCopier
from kv_transfer.tcp.handshake import Hello
from kv_transfer.transport import WriteRefused

KEY = b"of the cluster"
NUM_BYTES = 4 << 20
STAGE = 1 << 20


class End:
    def __init__(self, name: str, run_dir: Path, *, key: bytes = KEY) -> None:
        self.pool = open_file_pool(name, run_dir)
        self.memory = self.pool.memory
        self.transport = CollectiveTransport(
            "gloo", self.pool, host="127.0.0.1", key=key, stall_s=1.0
        )

    def close(self) -> None:
        self.transport.close()
        self.pool.close()


def open_file_pool(name: str, run_dir: Path) -> FilePool:
    config = PoolConfig(incarnation=Incarnation(name), num_bytes=NUM_BYTES, run_dir=run_dir)
    return FilePool(config)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[End]:
    with closing(End("receiver", tmp_path)) as end:
        yield end


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[End]:
    with closing(End("writer", tmp_path)) as end:
        end.memory[:] = np.random.default_rng(0).integers(1, 255, NUM_BYTES, dtype=np.uint8)
        yield end


def make_groups() -> GroupMaker:
    return GroupMaker("gloo", torch.device("cpu"), "127.0.0.1")


def port_of(end: End) -> int:
    return int(end.transport.address.rpartition(" ")[2])


def numbers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


class OddWriter:
    """Has the key, and does what it likes with line and group."""

    def __init__(self, receiver: End) -> None:
        self.line = Line(socket.create_connection(("127.0.0.1", port_of(receiver))), 5.0)
        own = Hello(incarnation=Incarnation("writer"), num_bytes=NUM_BYTES)
        theirs = self.line.greet(own, KEY)
        self.group = make_groups().open(
            self.line, Rank.WRITER, lambda rank: rank_proof(KEY, rank.name, own, theirs)
        )

    def announce(self, *spans: tuple[int, int], epoch: int = 1) -> None:
        offsets, sizes = np.array(spans, dtype=np.int64).T
        self.line.send_header(WriteHeader(epoch=epoch, spans=Spans(offsets=offsets, sizes=sizes)))

    def hear(self) -> LineAnswer:
        return self.line.receive_answer()

    def send_ones(self, num_bytes: int) -> None:
        self.group.send(torch.ones(num_bytes, dtype=torch.uint8))()


async def test_what_is_revoked_in_the_middle_of_a_write_lands_no_further(
    writer: End, receiver: End
) -> None:
    peer = await receiver.transport.connect(writer.transport.address)
    peer.admit(1, lambda spans: True)
    odd = await asyncio.to_thread(OddWriter, receiver)
    with closing(odd.line):
        odd.announce((0, 4 * STAGE))
        assert [odd.hear(), odd.hear()] == [LineAnswer.CREDIT] * 2
        odd.send_ones(STAGE)
        assert odd.hear() is LineAnswer.CREDIT, "the first stageful is in the pool"
        assert peer.revoke(1)
        receiver.memory[:] = 9  # its blocks have another use now
        odd.send_ones(STAGE)
        odd.send_ones(STAGE)
        assert odd.hear() is LineAnswer.STOPPED, "the last one is not asked for"
        assert (receiver.memory == 9).all()
        peer.admit(2, lambda spans: True)  # and the line is in step
        odd.announce((5, 3), epoch=2)
        assert odd.hear() is LineAnswer.CREDIT
        odd.send_ones(3)
        assert odd.hear() is LineAnswer.LANDED
        assert receiver.memory[4:9].tolist() == [9, 1, 1, 1, 9]


@pytest.mark.parametrize(
    "spans",
    [
        [(-1, 5)],
        [(NUM_BYTES - 4, 5)],
        [(2**63 - 1, 5)],
        [(0, 2**63 - 1)],
        [(0, 0)],
        [(0, -5)],
        [(0, NUM_BYTES), (0, 1)],
    ],
)
async def test_a_writer_that_names_what_is_not_there_is_refused(
    writer: End, receiver: End, spans: list[tuple[int, int]]
) -> None:
    peer = await receiver.transport.connect(writer.transport.address)
    peer.admit(1, lambda spans: True)
    odd = await asyncio.to_thread(OddWriter, receiver)
    with closing(odd.line):
        odd.announce(*spans)
        assert odd.hear() is LineAnswer.REFUSED
        odd.announce((0, 5))
        assert odd.hear() is LineAnswer.CREDIT


async def test_a_header_without_end_ends_the_line(writer: End, receiver: End) -> None:
    odd = await asyncio.to_thread(OddWriter, receiver)
    with closing(odd.line):
        odd.line.send(b"\xff" * 64)
        with pytest.raises(TransferFailed):
            odd.hear()
    await writer.transport.connect(receiver.transport.address)  # and others come in


async def test_an_address_that_is_nonsense_is_refused(writer: End, receiver: End) -> None:
    incarnation, num_bytes, pid, *process, host, port = receiver.transport.address.split(" ")
    for parts in (
        (incarnation, num_bytes, pid, *process, host, "99999"),
        (incarnation, num_bytes, pid, *process, "a..b", port),
        (incarnation, num_bytes, "999999999", *process, host, port),
        (incarnation, num_bytes, "9" * 18, *process, host, port),
        (incarnation, "7", pid, *process, host, port),
        ("another", num_bytes, pid, *process, host, port),
        (incarnation, num_bytes, pid, *process, host),
    ):
        with pytest.raises(TransferFailed):
            await writer.transport.connect(" ".join(parts))


async def test_another_key_is_named_as_the_reason(tmp_path: Path, receiver: End) -> None:
    with (
        closing(End("stranger", tmp_path, key=b"another")) as stranger,
        pytest.raises(TransferFailed, match="secrets"),
    ):
        await stranger.transport.connect(receiver.transport.address)


async def test_strangers_are_few_and_do_not_stay(writer: End, receiver: End) -> None:
    strangers = [
        socket.create_connection(("127.0.0.1", port_of(receiver))) for _ in range(MAX_STRANGERS)
    ]
    with socket.create_connection(("127.0.0.1", port_of(receiver)), timeout=5) as one_more:
        assert one_more.recv(1) == b"", "hung up on at once"
    for stranger in strangers:
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        while stranger.recv(1 << 16):
            pass
        stranger.close()
    await writer.transport.connect(receiver.transport.address)


async def test_a_process_without_file_descriptors_accepts_again(
    writer: End, receiver: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of one `accept` is not the end of the transport."""
    seen = threading.Event()
    accept = socket.socket.accept

    def accept_once_more(self: socket.socket) -> Any:
        if not seen.is_set():
            seen.set()
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    monkeypatch.setattr("kv_transfer.collective.receiver.PAUSE_S", 0.01)
    monkeypatch.setattr(socket.socket, "accept", accept_once_more)
    first = socket.create_connection(("127.0.0.1", port_of(receiver)))  # ends the call in flight
    await writer.transport.connect(receiver.transport.address)
    assert seen.is_set()
    first.close()


async def test_a_stranger_in_the_group_is_found_out() -> None:
    """Gloo's own sockets ask nobody who they are."""

    def join(end: socket.socket, rank: Rank, expected: bytes) -> ProcessGroup:
        with closing(Line(end, 5.0)) as line:
            return make_groups().open(line, rank, lambda of: b"ours" if of is rank else expected)

    receiver, writer = socket.socketpair()
    seen = await asyncio.gather(
        asyncio.to_thread(join, receiver, Rank.RECEIVER, b"ours"),
        asyncio.to_thread(join, writer, Rank.WRITER, b"else"),
        return_exceptions=True,
    )
    assert [type(one) for one in seen] == [TransferFailed, TransferFailed]
    assert "stranger" in str(seen[1])


@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16", "int8"])
async def test_converted_rows_arrive_as_by_a_copy(
    writer: End, receiver: End, wire_dtype: str
) -> None:
    conversion = Conversion(
        source_dtype="float32", wire_dtype=wire_dtype, destination_dtype="bfloat16", row=24
    )
    num_rows = 12_000  # several stagefuls
    order = np.random.default_rng(1).permutation(num_rows)
    values = np.random.default_rng(2).standard_normal(num_rows * 24, dtype=np.float32)
    writer.memory[: values.nbytes] = values.view(np.uint8)
    pairs = SpanPairs(
        source=np.arange(num_rows) * 96,
        destination=order * 48,
        sizes=np.full(num_rows, 96),
        conversion=conversion,
    )
    expected = np.zeros(NUM_BYTES, dtype=np.uint8)
    digest = SpanCopier().copy(writer.memory, expected, pairs, digest=True)
    peer = await writer.transport.connect(receiver.transport.address)
    back = await receiver.transport.connect(writer.transport.address)
    back.admit(1, lambda spans: True)
    write = peer.write(pairs, epoch=1, digest=True, may_start=lambda: True)
    assert (await asyncio.wrap_future(write)).digest == digest
    assert np.array_equal(receiver.memory, expected)


async def test_writes_to_one_peer_do_not_wait_for_those_to_another(
    tmp_path: Path, writer: End, receiver: End
) -> None:
    hold = threading.Event()
    with closing(End("other", tmp_path)) as other:
        for end, allows in ((receiver, lambda spans: hold.wait(20)), (other, lambda spans: True)):
            (await end.transport.connect(writer.transport.address)).admit(1, allows)
        slow, quick = [
            await writer.transport.connect(end.transport.address) for end in (receiver, other)
        ]
        pairs = SpanPairs(source=numbers(0), destination=numbers(0), sizes=numbers(100))
        write = partial(slow.write, pairs, epoch=1, digest=False, may_start=lambda: True)
        held = write()
        await asyncio.wrap_future(quick.write(pairs, epoch=1, digest=False, may_start=lambda: True))
        assert not held.done()
        hold.set()
        await asyncio.wrap_future(held)


async def test_a_closed_receiver_is_heard_of_at_once(writer: End, tmp_path: Path) -> None:
    end = End("receiver", tmp_path)
    peer = await writer.transport.connect(end.transport.address)
    end.close()
    pairs = SpanPairs(source=numbers(0), destination=numbers(0), sizes=numbers(100))
    with pytest.raises(TransferFailed) as caught:
        await asyncio.wrap_future(peer.write(pairs, epoch=1, digest=False, may_start=lambda: True))
    assert not isinstance(caught.value, WriteRefused)
    with pytest.raises(TransferFailed, match="Nobody answers"):
        await asyncio.wrap_future(peer.write(pairs, epoch=1, digest=False, may_start=lambda: True))


@pytest.mark.parametrize(
    ("host", "advertise"), [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "192.0.2.1")]
)
async def test_peers_dial_where_it_listens(tmp_path: Path, host: str, advertise: str) -> None:
    """Of all of a machine's addresses at the one that is advertised."""
    settings = DoorSettings(host=host, advertise=advertise, key=KEY)
    pools = [open_file_pool(name, tmp_path) for name in ("a", "b")]
    ours, theirs = (open_doors(["gloo"], pool, settings)[0] for pool in pools)
    await ours.connect(theirs.address)
    for each in (ours, theirs, *pools):
        each.close()


def test_what_cannot_work_is_refused_at_the_start(tmp_path: Path) -> None:
    settings = DoorSettings(key=KEY)
    with closing(open_file_pool("us", tmp_path)) as pool:
        with pytest.raises(ConfigError, match="'device' to 'cuda'"):
            open_doors(["nccl"], pool, settings)
        with pytest.raises(ConfigError, match="address"):
            open_doors(["gloo"], pool, DoorSettings(host="0.0.0.0", key=KEY))
        with pytest.raises(ConfigError, match="received"):
            open_doors(["gloo"], pool, DoorSettings(host="192.0.2.1", key=KEY))
    device_pool = DevicePool(Incarnation("us"), NUM_BYTES, "cpu")
    for door in ("shared_memory", "tcp"):
        with pytest.raises(ConfigError, match="'gloo'"):
            open_doors([door], device_pool, settings)
    config = PoolConfig(incarnation=Incarnation("us"), num_bytes=NUM_BYTES, run_dir=tmp_path)
    with pytest.raises(ConfigError, match="no such device"):
        open_pool(config, "not-a-device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_is_said_while_we_are_away_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is not said is missed once we are back, after the rest of the time."""
    absent_s, is_back = 0.0, threading.Event()

    def clock() -> float:
        if absent_s:
            is_back.set()
        return time.monotonic() + absent_s

    monkeypatch.setattr(collective_line, "Limit", lambda limit_s: Limit(limit_s, clock))
    ours, theirs = socket.socketpair()
    with closing(Line(ours, 1.0)) as line, theirs, ThreadPoolExecutor(1) as thread:
        hearing = thread.submit(line.receive, 1)
        absent_s = 60.0
        assert is_back.wait(10)
        theirs.sendall(b"x")
        assert hearing.result(10) == b"x"
        with pytest.raises(TransferFailed, match="says nothing"):
            line.receive(1)


@pytest.mark.parametrize("end", [Line.greet, Line.welcome])
def test_a_connection_that_is_reset_is_a_failed_transfer(end: Callable[..., Hello]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    with closing(Line(ours, 1.0)) as line, pytest.raises(TransferFailed):
        end(line, Hello(incarnation=Incarnation("us"), num_bytes=1), KEY)
