"""Our own TCP streams: what lands, in which order, and what is lost and found again."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import uvloop

from cluster.authority import Authority, Credentials, create_authority, issue
from cluster.errors import ConfigError, TransferFailed
from kv_transfer.doors import DoorSettings, open_doors
from kv_transfer.span_copy import SpanCopier
from kv_transfer.tcp import frame as tcp_frame
from kv_transfer.tcp import link as tcp_link
from kv_transfer.tcp import receiver as tcp_receiver
from kv_transfer.tcp.dial import TcpAddress
from kv_transfer.tcp.frame import cut
from kv_transfer.tcp.transport import TcpPeer
from kv_transfer.tcp.wire import Tls
from kv_transfer.transport import WriteRefused
from tests.identities import BEYOND_LOOPBACK, half_trusted, shown
from tests.kv_transfer.tcp_rig import (
    KEY,
    NUM_BYTES,
    End,
    Intruder,
    landed,
    pairs_of,
    until,
    write,
)

Open = Callable[..., End]


@pytest.fixture
async def open_end(tmp_path: Path) -> AsyncIterator[Open]:
    ends: list[End] = []

    def open_end(name: str, **settings: object) -> End:
        ends.append(End(name, tmp_path, **settings))  # type: ignore[arg-type]
        return ends[-1]

    yield open_end
    for end in ends:
        end.close()


async def pair(ours: End, theirs: End, epoch: int = 1) -> TcpPeer:
    """Ours may write to theirs in the epoch."""
    writer = await theirs.transport.connect(ours.transport.address)
    writer.admit(epoch, lambda spans: True)
    ours.fill()
    return await ours.transport.connect(theirs.transport.address)


SHAPES = {
    "one span": [(5, 700_001, 1_500_003)],
    "thousands": [(64 * i, 64 * ((i * 7919) % 20_000), 64) for i in range(5_000)],
    "mixed": [(0, 0, 1), (1, 400_000, 1_200_000), (1_300_000, 9, 5), (7, 100, 65_536)],
}


@pytest.mark.parametrize("num_streams", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
async def test_the_digest_is_that_of_the_bytes_in_wire_order(
    open_end: Open, shape: str, num_streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_link, "SPLIT_BYTES", 1 << 16)
    monkeypatch.setattr(tcp_frame, "FRAME_BYTES", 1 << 14)
    ours, theirs = open_end("a", num_streams=num_streams), open_end("b")
    peer = await pair(ours, theirs)
    expected = np.zeros(NUM_BYTES, dtype=np.uint8)
    pairs = pairs_of(*SHAPES[shape])
    digest = SpanCopier().copy(ours.memory, expected, pairs, digest=True)
    assert (await landed(write(peer, *SHAPES[shape]))).digest == digest
    assert np.array_equal(theirs.memory, expected)


async def test_writes_one_behind_the_other_have_each_their_digest(open_end: Open) -> None:
    ours, theirs = open_end("a"), open_end("b")
    peer = await pair(ours, theirs)
    hold = threading.Event()
    held = peer.write(pairs_of((0, 0, 9)), epoch=1, digest=True, may_start=lambda: hold.wait(9))
    shapes = [[(97 * i, 31 * i, 50_000 * i)] for i in range(1, 40)]
    queued = [write(peer, *spans) for spans in shapes]
    hold.set()
    await landed(held)
    scratch = np.empty(NUM_BYTES, dtype=np.uint8)
    for spans, future in zip(shapes, queued, strict=True):
        digest = SpanCopier().copy(ours.memory, scratch, pairs_of(*spans), digest=True)
        assert (await landed(future)).digest == digest


async def test_a_split_write_neither_overtakes_nor_is_overtaken(
    open_end: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_link, "SPLIT_BYTES", 1 << 16)
    monkeypatch.setattr(tcp_frame, "FRAME_BYTES", 1 << 14)
    ours, theirs = open_end("a", num_streams=3), open_end("b")
    peer = await pair(ours, theirs)
    ours.memory[:] = np.arange(NUM_BYTES) // (1 << 17)  # what is written says when
    large = [write(peer, (i << 17, 0, 1 << 17)) for i in range(8)]
    small = [write(peer, (i << 17, 5000 * i, 5000)) for i in range(8, 16)]
    last = write(peer, (16 << 17, 0, 1 << 17))
    for future in (*large, *small, last):
        await landed(future)
    assert (theirs.memory[: 1 << 17] == 16).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_frames_are_the_write_within_their_limits(shape: str) -> None:
    pairs = pairs_of(*SHAPES[shape])
    frames = list(cut(pairs))
    assert all(0 < frame.num_bytes <= tcp_frame.FRAME_BYTES for frame in frames)
    assert all(0 < len(frame) <= tcp_frame.FRAME_SPANS for frame in frames)
    everything = np.arange(NUM_BYTES)
    for end in ("source", "destination"):
        wire_order = [
            everything[getattr(pair, end) : getattr(pair, end) + pair.num_bytes] for pair in pairs
        ]
        framed = [
            everything[getattr(pair, end) : getattr(pair, end) + pair.num_bytes]
            for frame in frames
            for pair in frame
        ]
        assert np.array_equal(np.concatenate(framed), np.concatenate(wire_order))


async def test_several_threads_write_side_by_side(open_end: Open) -> None:
    ours, theirs = open_end("a"), open_end("b")
    peer = await pair(ours, theirs)

    def write_quarter(quarter: int) -> None:
        size = NUM_BYTES // 4 // 50
        futures = [
            write(peer, (at, at, size))
            for at in range(quarter * 50 * size, (quarter + 1) * 50 * size, size)
        ]
        for future in futures:
            future.result(10)

    await asyncio.gather(*(asyncio.to_thread(write_quarter, quarter) for quarter in range(4)))
    num_written = NUM_BYTES // 4 // 50 * 200
    assert np.array_equal(theirs.memory[:num_written], ours.memory[:num_written])


async def test_both_ways_at_once(open_end: Open) -> None:
    ours, theirs = open_end("a"), open_end("b")
    there, back = await pair(ours, theirs), await pair(theirs, ours)
    theirs.memory[:] = 9
    half = NUM_BYTES // 2
    writes = [write(there, (0, 0, half)), write(back, (half, half, half))]
    for future in writes:
        await landed(future)
    assert np.array_equal(theirs.memory[:half], ours.memory[:half])
    assert (ours.memory[half:] == 9).all()


async def test_who_is_slow_to_start_holds_up_nobody_else(open_end: Open) -> None:
    ours, slow, quick = open_end("a"), open_end("b"), open_end("c")
    to_slow, to_quick = await pair(ours, slow), await pair(ours, quick)
    hold = threading.Event()
    held = to_slow.write(pairs_of((0, 0, 9)), epoch=1, digest=False, may_start=lambda: hold.wait(9))
    await landed(write(to_quick, (0, 0, 9)))
    assert not held.done()
    hold.set()
    await landed(held)


async def test_a_stream_that_was_lost_is_dialled_again(
    open_end: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_receiver, "MAX_STREAMS", 1)
    ours, theirs = open_end("a"), open_end("b")
    peer = await pair(ours, theirs)
    await landed(write(peer, (0, 0, 9)))
    namesake = Intruder("a", theirs)  # there is room for one: the first has to go
    await until(lambda: theirs.counters["num_lost_streams"] == 1)
    try:
        await landed(write(peer, (0, 100, 9)))
    except TransferFailed:  # it was faster than the news
        await landed(write(peer, (0, 100, 9)))
    assert theirs.memory[100:109].all()
    assert not peer.life.is_over
    namesake.close()


async def test_a_restarted_worker_is_not_taken_for_the_old_one(open_end: Open) -> None:
    ours, theirs = open_end("a"), open_end("b")
    peer = await pair(ours, theirs)
    old = theirs.transport.address
    theirs.close()
    again = open_end("b2", port=theirs.target.port)
    again_writer = await again.transport.connect(ours.transport.address)
    again_writer.admit(1, lambda spans: True)
    for _ in range(2):  # whether or not it has noticed the loss
        with pytest.raises(TransferFailed):
            await landed(write(peer, (0, 0, 9)))
    with pytest.raises(WriteRefused, match="restarted"):
        await landed(write(peer, (0, 0, 9)))
    peer.life.end()
    with pytest.raises(TransferFailed, match="restarted"):
        await ours.transport.connect(old)
    assert not again.memory.any()
    await landed(write(await ours.transport.connect(again.transport.address), (0, 0, 9)))


async def test_who_is_forgotten_reaches_nobody_and_is_reached_by_nobody(open_end: Open) -> None:
    ours, theirs = open_end("a"), open_end("b")
    peer = await pair(ours, theirs)
    writer = await theirs.transport.connect(ours.transport.address)
    writer.life.end()
    with pytest.raises(WriteRefused):
        await landed(write(peer, (0, 0, 9)))
    peer.life.end()
    with pytest.raises(WriteRefused):
        await landed(write(peer, (0, 0, 9)))
    assert not theirs.memory.any()
    again = await pair(ours, theirs)
    assert again is not peer
    await landed(write(again, (0, 0, 9)))


@pytest.mark.parametrize(
    ("num_streams", "num_turns"), [(1, 10), (3, 10), pytest.param(3, 400, marks=pytest.mark.prove)]
)
async def test_revoked_under_full_load_nothing_lands(
    open_end: Open, num_streams: int, num_turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over and over: the moment `revoke` returns, the blocks are another's."""
    monkeypatch.setattr(tcp_link, "SPLIT_BYTES", 1 << 16)
    monkeypatch.setattr(tcp_frame, "FRAME_BYTES", 1 << 18)
    ours, theirs = open_end("a", num_streams=num_streams), open_end("b")
    peer = await pair(ours, theirs)
    writer = await theirs.transport.connect(ours.transport.address)
    num_revoked_on_the_way = 0
    for epoch in range(2, 2 + num_turns):
        theirs.memory[:] = 0
        writer.admit(epoch, lambda spans: True)
        writes = [write(peer, (0, 0, NUM_BYTES), epoch=epoch) for _ in range(6)]
        await until(theirs.memory[NUM_BYTES * (epoch % 30) // 30 :].any)
        assert writer.revoke(epoch)
        theirs.memory[:] = 99
        failures = [future.exception(10) for future in writes]  # whatever was on its way has come
        assert (theirs.memory == 99).all()
        num_revoked_on_the_way += failures[-1] is not None
    assert num_revoked_on_the_way > num_turns // 5


async def test_a_write_of_no_bytes_lands(open_end: Open) -> None:
    peer = await pair(open_end("a"), open_end("b"))
    nothing = np.empty(0, dtype=np.int64)
    pairs = type(pairs_of((0, 0, 1)))(source=nothing, destination=nothing, sizes=nothing)
    future = peer.write(pairs, epoch=1, digest=True, may_start=lambda: True)
    assert (await landed(future)).num_bytes == 0


async def test_closing_waits_for_nobody(open_end: Open) -> None:
    ours = open_end("a")
    silent = socket.create_server(("127.0.0.1", 0))
    address = ours.transport.address.replace(
        f":{ours.target.port}:a:", f":{silent.getsockname()[1]}:b:"
    )
    connecting = asyncio.create_task(ours.transport.connect(address))
    accepted, _ = await asyncio.to_thread(silent.accept)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    async with asyncio.timeout(1):
        await asyncio.to_thread(ours.transport.close)
    with pytest.raises(TransferFailed, match="closed"):
        await ours.transport.connect(address)
    accepted.close()
    silent.close()


def test_it_works_under_uvloop(tmp_path: Path) -> None:
    async def run() -> None:
        ours, theirs = End("a", tmp_path), End("b", tmp_path)
        try:
            await landed(write(await pair(ours, theirs), (0, 0, NUM_BYTES)))
            assert np.array_equal(theirs.memory, ours.memory)
        finally:
            ours.close()
            theirs.close()

    uvloop.run(run())


class TestAddresses:
    async def test_an_address_is_parsed_strictly(self, open_end: Open) -> None:
        address = open_end("a").transport.address
        assert str(TcpAddress.parse(address)) == address
        host_port, rest = address.split(":a:")
        for wrong in (
            address + "x",
            " " + address,
            address + "\n",
            f"{host_port}::{rest}",
            f"127.0.0.1:99999:a:{rest}",
            f"127.0.0.1:-1:a:{rest}",
            f"127.0.0.1:1\u0661:a:{rest}",
            f"exa mple:1:a:{rest}",
            f"::1:1:a:{rest}",
            f"{host_port}:{'a' * 129}:{rest}",
            f"{host_port}:a:{'9' * 19}{rest.lstrip('0123456789')}",
        ):
            with pytest.raises(TransferFailed, match="not the address"):
                TcpAddress.parse(wrong)

    def test_an_ipv6_address_survives(self, tmp_path: Path) -> None:
        end = End("a", tmp_path)
        six = end.target._replace(host="fe80::1")
        assert TcpAddress.parse(str(six)) == six
        assert str(six).startswith("[fe80::1]:")
        end.close()

    @pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
    def test_where_nobody_can_be_dialled_nobody_listens(self, host: str, tmp_path: Path) -> None:
        end = End("a", tmp_path)
        with pytest.raises(ConfigError, match="name the address"):
            open_doors(["tcp"], end.pool, DoorSettings(host=host, key=b"key"))
        end.close()

    def test_a_port_that_is_taken_is_named(self, tmp_path: Path) -> None:
        end = End("a", tmp_path)
        settings = DoorSettings(key=b"key", tcp_port=end.target.port)
        with pytest.raises(ConfigError, match=str(end.target.port)):
            open_doors(["tcp"], end.pool, settings)
        end.close()

    async def test_where_nobody_listens_the_error_says_what_to_check(self, open_end: Open) -> None:
        ours, theirs = open_end("a"), open_end("b")
        address = theirs.transport.address
        theirs.close()
        with pytest.raises(TransferFailed, match="firewall"):
            await ours.transport.connect(address)


class TestTls:
    @pytest.fixture
    def authority(self) -> Authority:
        return create_authority()

    @pytest.mark.parametrize("num_streams", [1, 2])
    @pytest.mark.parametrize("shape", SHAPES)
    async def test_bytes_land_as_without(
        self,
        open_end: Open,
        authority: Authority,
        shape: str,
        num_streams: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(tcp_link, "SPLIT_BYTES", 1 << 16)
        ours = open_end("a", credentials=shown(authority), num_streams=num_streams)
        theirs = open_end("b", credentials=shown(authority))
        peer = await pair(ours, theirs)
        expected = np.zeros(NUM_BYTES, dtype=np.uint8)
        pairs = pairs_of(*SHAPES[shape])
        digest = SpanCopier().copy(ours.memory, expected, pairs, digest=True)
        for _ in range(3):
            assert (await landed(write(peer, *SHAPES[shape]))).digest == digest
        assert np.array_equal(theirs.memory, expected)

    async def test_what_is_revoked_is_refused(self, open_end: Open, authority: Authority) -> None:
        ours = open_end("a", credentials=shown(authority))
        theirs = open_end("b", credentials=shown(authority))
        peer = await pair(ours, theirs)
        (await theirs.transport.connect(ours.transport.address)).revoke(1)
        with pytest.raises(WriteRefused):
            await landed(write(peer, (0, 0, NUM_BYTES)))
        assert not theirs.memory.any()

    async def test_another_authority_is_not_trusted(
        self, open_end: Open, authority: Authority
    ) -> None:
        theirs = open_end("b", credentials=shown(authority))
        ours = open_end("a", credentials=shown(create_authority()))
        with pytest.raises(TransferFailed, match="TLS"):
            await ours.transport.connect(theirs.transport.address)
        half = open_end("c", credentials=half_trusted(authority))
        with pytest.raises(TransferFailed):  # ours is trusted, its is not
            await half.transport.connect(theirs.transport.address)
        await until(lambda: theirs.counters["num_strangers"] == 2)

    async def test_one_end_with_and_one_without(self, open_end: Open, authority: Authority) -> None:
        secure, plain = open_end("a", credentials=shown(authority)), open_end("b")
        with pytest.raises(TransferFailed, match="TLS"):
            await secure.transport.connect(plain.transport.address)
        with pytest.raises(TransferFailed, match="TLS"):
            await plain.transport.connect(secure.transport.address)

    async def test_whoever_stands_between_two_tls_ends_cannot_pass_the_proofs_on(
        self, open_end: Open, authority: Authority
    ) -> None:
        """Even with a certificate of the same authority: the proofs are over both."""
        ours = open_end("a", credentials=shown(authority))
        theirs = open_end("b", credentials=shown(authority))
        between = Tls(issue(authority))
        with Between(between, theirs.target.port) as port:
            address = str(theirs.target._replace(port=port))
            with pytest.raises(TransferFailed, match="key"):
                await ours.transport.connect(address)

    async def test_it_is_spoken_beyond_loopback_by_itself(
        self, open_end: Open, authority: Authority
    ) -> None:
        credentials = Credentials(authority)
        ours = open_end("a", credentials=credentials)
        theirs = open_end("b", credentials=credentials, host=BEYOND_LOOPBACK)
        stranger = open_end("c")
        await ours.transport.connect(theirs.transport.address)
        await stranger.transport.connect(ours.transport.address)
        with pytest.raises(TransferFailed, match="TLS"):
            await stranger.transport.connect(theirs.transport.address)


async def test_one_host_may_listen_and_another_be_dialled(tmp_path: Path) -> None:
    end = End("a", tmp_path)
    settings = DoorSettings(host="0.0.0.0", advertise="127.0.0.1", key=KEY)
    [transport] = open_doors(["tcp"], end.pool, settings)
    assert transport.address.startswith("127.0.0.1:")
    await end.transport.connect(transport.address)
    transport.close()
    end.close()


class Between:
    """Decrypts, reads, encrypts again: passes on the two hellos, and the first proof."""

    def __init__(self, tls: Tls, port: int) -> None:
        self._tls = tls
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> int:
        self._thread.start()
        port: int = self._listening.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listening.close()

    def _run(self) -> None:
        there = socket.create_connection(("127.0.0.1", self._port))
        with (
            self._tls.wrap(self._listening.accept()[0], is_server=True) as client,
            self._tls.wrap(there, is_server=False) as server,
        ):
            client.do_handshake()
            server.do_handshake()
            for source, destination in ((client, server), (server, client), (client, server)):
                destination.sendall(source.recv(4096))
            assert server.recv(1) == b"", "it is not taken in"
