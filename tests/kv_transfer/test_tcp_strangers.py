"""Our own TCP streams against those who should not be there, and those who keep no rule."""

import asyncio
import os
import random
import resource
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import TransferFailed
from kv_transfer.tcp import frame as tcp_frame
from kv_transfer.tcp import receiver as tcp_receiver
from kv_transfer.tcp.dial import TcpAddress
from kv_transfer.tcp.frame import FrameAnswer
from kv_transfer.tcp.handshake import MAGIC, PREFIX, REST, VERSION
from tests.kv_transfer.tcp_rig import NUM_BYTES, End, Intruder, landed, until, write


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[tuple[End, End]]:
    """Ours may write to theirs, in epoch 1, its first 4096 bytes."""
    ours, theirs = End("a", tmp_path), End("b", tmp_path)
    writer = await theirs.transport.connect(ours.transport.address)
    writer.admit(1, lambda spans: bool((spans.offsets + spans.sizes <= 4096).all()))
    ours.memory[:] = 7
    yield ours, theirs
    await landed(write(await ours.transport.connect(theirs.transport.address), (0, 0, 9)))
    ours.close()
    theirs.close()


def dialled(end: End) -> socket.socket:
    return socket.create_connection(("127.0.0.1", end.target.port), timeout=10)


def hang_up(stream: socket.socket) -> bytes:
    """What came until the other end hung up."""
    received = b""
    with suppress(ConnectionError):
        while data := stream.recv(4096):
            received += data
    return received


def hello(name: bytes = b"a", *, magic: bytes = MAGIC, version: int = VERSION) -> bytes:
    return PREFIX.pack(magic, version) + REST.pack(NUM_BYTES, bytes(32), len(name)) + name


async def test_without_the_key_nobody_gets_in(ends: tuple[End, End], tmp_path: Path) -> None:
    _, theirs = ends
    stranger = End("c", tmp_path, key=b"another")
    with pytest.raises(TransferFailed, match="secrets file"):
        await stranger.transport.connect(theirs.transport.address)
    await until(lambda: theirs.counters["num_strangers"] == 1)
    stranger.close()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n" + bytes(100),
        hello(magic=b"penst-kw"),
        hello(version=VERSION + 1),
        hello(name=b""),
        hello(name=b"\xff" * 255),
        hello(name=b"../a"),
        hello() + bytes(32),  # a proof that is none
        hello() + b"\xff" * 32,
    ],
)
async def test_garbage_is_dropped(ends: tuple[End, End], said: bytes) -> None:
    with dialled(ends[1]) as stream:
        stream.sendall(said)
        await asyncio.to_thread(hang_up, stream)
    assert ends[1].counters["num_strangers"] == 1


async def test_noise_of_any_length_is_dropped(ends: tuple[End, End]) -> None:
    noise = random.Random(7)
    begins = (b"", hello()[: PREFIX.size], hello())
    for turn in range(60):
        with dialled(ends[1]) as stream:
            with suppress(OSError):  # it may hang up meanwhile
                stream.sendall(begins[turn % 3] + noise.randbytes(noise.randrange(400)))
                stream.shutdown(socket.SHUT_WR)
            await asyncio.to_thread(hang_up, stream)
    await until(lambda: ends[1].counters["num_strangers"] == 60)


async def test_a_handshake_that_was_heard_cannot_be_replayed(ends: tuple[End, End]) -> None:
    theirs = ends[1]
    heard = bytearray()
    with recording(theirs.target.port, heard) as port:
        intruder = Intruder("a", theirs, port=port)
        intruder.close()
    with dialled(theirs) as stream:
        stream.sendall(heard)
        answer = await asyncio.to_thread(hang_up, stream)
    assert len(answer) == len(hello(b"b")), "a hello, and no proof"
    assert theirs.counters["num_strangers"] == 1


async def test_who_sends_back_what_we_say_proves_nothing(ends: tuple[End, End]) -> None:
    ours = ends[0]
    with reflecting() as port:
        address = TcpAddress.parse(ours.transport.address)._replace(port=port)
        with pytest.raises(TransferFailed, match="key"):
            await ours.transport.connect(str(address))


@contextmanager
def recording(port: int, heard: bytearray) -> Iterator[int]:
    """A door before a port, which writes down what callers say."""
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        caller, _ = listening.accept()
        called = socket.create_connection(("127.0.0.1", port))
        back = threading.Thread(target=pass_on, args=(called, caller, bytearray()))
        back.start()
        pass_on(caller, called, heard)
        back.join()
        caller.close()
        called.close()

    with running(run, listening) as own_port:
        yield own_port


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "another protocol"),
        (hello(version=VERSION + 1), f"version {VERSION + 1}"),
        (hello(b"newer"), "hung up|does not accept"),
        (b"", "hung up"),
    ],
)
async def test_who_is_not_what_was_dialled_is_described(
    ends: tuple[End, End], answer: bytes, says: str
) -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with listening.accept()[0] as caller:
            caller.sendall(answer)
            caller.recv(len(hello(b"a")), socket.MSG_WAITALL)

    with running(run, listening) as port:
        target = ends[1].target._replace(port=port)
        with pytest.raises(TransferFailed, match=says):
            await ends[0].transport.connect(str(target))


@contextmanager
def reflecting() -> Iterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with listening.accept()[0] as caller:
            pass_on(caller, caller, bytearray())

    with running(run, listening) as port:
        yield port


@contextmanager
def running(run: object, listening: socket.socket) -> Iterator[int]:
    thread = threading.Thread(target=run)  # type: ignore[arg-type]
    thread.start()
    yield listening.getsockname()[1]
    thread.join(10)
    listening.close()


def pass_on(source: socket.socket, destination: socket.socket, heard: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(4096):
            heard += data
            destination.sendall(data)
        destination.shutdown(socket.SHUT_RDWR)


class TestFloods:
    async def test_many_who_say_nothing_keep_nobody_out(
        self, ends: tuple[End, End], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tcp_receiver, "MAX_STRANGERS", 32)
        silent = [dialled(ends[1]) for _ in range(3 * tcp_receiver.MAX_STRANGERS)]
        late = End("c", tmp_path)
        async with asyncio.timeout(1):
            await late.transport.connect(ends[1].transport.address)
        num_dropped = len(silent) - tcp_receiver.MAX_STRANGERS
        assert ends[1].counters["num_strangers"] >= num_dropped
        late.close()
        for stream in silent:
            stream.close()

    @pytest.mark.slow
    async def test_who_is_slow_to_say_who_it_is_is_dropped(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tcp_receiver, "GREETING_S", 0.3)
        theirs = End("b", tmp_path)
        with dialled(theirs) as silent, dialled(theirs) as slow:
            slow.sendall(hello()[:20])
            for stream in (silent, slow):
                assert await asyncio.to_thread(hang_up, stream) == b""
        assert theirs.counters["num_strangers"] == 2
        theirs.close()

    async def test_streams_of_one_writer_are_bounded(
        self, ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tcp_receiver, "MAX_STREAMS", 4)
        many = [Intruder("c", ends[1]) for _ in range(9)]
        await until(lambda: ends[1].counters["num_lost_streams"] == 5)
        assert many[0].answer() is None
        for intruder in many:
            intruder.close()

    @pytest.mark.slow
    async def test_without_a_file_descriptor_left_callers_wait(
        self,
        ends: tuple[End, End],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(tcp_receiver, "PAUSE_S", 0.2)
        with socket.socket() as stream:
            with no_more_files():
                stream.connect(("127.0.0.1", ends[1].target.port))
                await until(lambda: "can be accepted" in caplog.text)
            stream.sendall(b"nonsense, but heard")
            await asyncio.to_thread(hang_up, stream)
        assert caplog.text.count("can be accepted") < 5, "it does not ask again and again"


@contextmanager
def no_more_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestFrames:
    """Of one that knows the key."""

    @pytest.fixture
    def intruder(self, ends: tuple[End, End]) -> Iterator[Intruder]:
        intruder = Intruder("a", ends[1])
        yield intruder
        intruder.close()

    async def test_what_is_allowed_lands(self, ends: tuple[End, End], intruder: Intruder) -> None:
        intruder.frame(1, (4, 2), (9, 1), payload=b"abc")
        assert await asyncio.to_thread(intruder.answer) == FrameAnswer.LANDED
        assert ends[1].memory[:10].tobytes() == b"\0\0\0\0ab\0\0\0c"

    async def test_what_is_sent_on_trial_lands_nowhere(
        self, ends: tuple[End, End], intruder: Intruder
    ) -> None:
        intruder.frame(tcp_frame.TRIAL_EPOCH, (0, 3), payload=b"abc")
        assert await asyncio.to_thread(intruder.answer) == FrameAnswer.LANDED
        assert not ends[1].memory.any()
        assert ends[1].counters["num_refused_frames"] == 0
        intruder.frame(1, (0, 3), payload=b"abc")
        assert await asyncio.to_thread(intruder.answer) == FrameAnswer.LANDED

    @pytest.mark.parametrize(
        ("epoch", "spans"),
        [
            (2, [(0, 3)]),  # not admitted
            (2**64 - 2, [(0, 3)]),
            (1, [(0, 3), (4096, 3)]),  # not lent
            (1, [(NUM_BYTES - 2, 3)]),  # not there
            (1, [(-1, 3)]),
            (1, [(-(2**63), 3)]),
            (1, [(2**63 - 1, 3)]),
            (1, [(2**63 - 1, 3), (0, 3)]),
        ],
    )
    async def test_what_is_not_allowed_is_refused_and_the_stream_goes_on(
        self,
        ends: tuple[End, End],
        intruder: Intruder,
        epoch: int,
        spans: list[tuple[int, int]],
    ) -> None:
        intruder.frame(epoch, *spans, payload=b"xyz" * len(spans))
        assert await asyncio.to_thread(intruder.answer) == FrameAnswer.REFUSED
        assert not ends[1].memory.any()
        assert ends[1].counters["num_refused_frames"] == 1
        intruder.frame(1, (0, 3), payload=b"abc")
        assert await asyncio.to_thread(intruder.answer) == FrameAnswer.LANDED

    @pytest.mark.parametrize(
        "numbers",
        [
            {"num_bytes": 0},
            {"num_bytes": 4},
            {"num_bytes": 2},
            {"num_bytes": tcp_frame.FRAME_BYTES + 1},
            {"num_bytes": 2**32 - 1},
            {"num_spans": 0},
            {"num_spans": tcp_frame.FRAME_SPANS + 1},
            {"num_spans": 2**32 - 1},
        ],
    )
    async def test_lengths_that_cannot_be_end_the_stream(
        self, ends: tuple[End, End], intruder: Intruder, numbers: dict[str, int]
    ) -> None:
        intruder.frame(1, (0, 3), payload=b"abc", **numbers)
        assert await asyncio.to_thread(intruder.answer) is None
        assert not ends[1].memory.any()
        assert ends[1].counters["num_lost_streams"] == 1

    async def test_an_empty_span_ends_the_stream(
        self, ends: tuple[End, End], intruder: Intruder
    ) -> None:
        intruder.frame(1, (0, 3), (5, 0), payload=b"abc")
        assert await asyncio.to_thread(intruder.answer) is None
        assert not ends[1].memory.any()

    @pytest.mark.parametrize(
        ("span", "fields"),
        [
            ((2, 8), (0, 1, 0, 2)),  # not where a row begins
            ((8, 6), (0, 1, 0, 2)),  # not a whole row
            ((8, 8), (0, 9, 0, 2)),  # a dtype that nobody knows
            ((8, 8), (0, 3, 3, 2)),  # no pool is of int8
            ((8, 8), (0, 1, 0, 1 << 30)),
        ],
    )
    async def test_conversions_that_cannot_be_end_the_stream(
        self,
        ends: tuple[End, End],
        intruder: Intruder,
        span: tuple[int, int],
        fields: tuple[int, int, int, int],
    ) -> None:
        conversion = struct.pack("<BBBI", *fields)
        intruder.frame(1, span, payload=b"abcd", num_bytes=4, conversion=conversion)
        assert await asyncio.to_thread(intruder.answer) is None
        assert not ends[1].memory.any()

    async def test_anothers_epoch_is_not_ones_own(self, ends: tuple[End, End]) -> None:
        other = Intruder("c", ends[1])
        other.frame(1, (0, 3), payload=b"xyz")
        assert await asyncio.to_thread(other.answer) == FrameAnswer.REFUSED
        assert not ends[1].memory.any()
        other.close()

    async def test_noise_in_place_of_frames_lands_nowhere_else(self, ends: tuple[End, End]) -> None:
        noise = random.Random(3)
        for _ in range(40):
            intruder = Intruder("a", ends[1])
            head = struct.pack("<QII", 1, noise.randrange(1, 40), noise.randrange(1, 4000))
            with suppress(OSError):
                intruder.stream.sendall(head + noise.randbytes(noise.randrange(5000)))
                intruder.stream.shutdown(socket.SHUT_WR)
            await asyncio.to_thread(hang_up, intruder.stream)
            intruder.close()
        assert not ends[1].memory[4096:].any()

    async def test_a_bug_of_who_admits_ends_one_stream(
        self, ends: tuple[End, End], intruder: Intruder, caplog: pytest.LogCaptureFixture
    ) -> None:
        ours, theirs = ends
        writer = await theirs.transport.connect(ours.transport.address)
        writer.admit(5, lambda spans: 1 // 0 == 0)
        intruder.frame(5, (0, 3), payload=b"abc")
        assert await asyncio.to_thread(intruder.answer) is None
        assert "ZeroDivisionError" in caplog.text


class TestRevocation:
    @pytest.mark.parametrize("num_sent", [0, 1, 1500])
    async def test_who_stopped_in_mid_frame_and_goes_on_writes_nothing(
        self, ends: tuple[End, End], num_sent: int
    ) -> None:
        ours, theirs = ends
        writer = await theirs.transport.connect(ours.transport.address)
        frozen = Intruder("a", theirs)
        frozen.frame(1, (100, 1000), (2000, 1000), payload=b"x" * num_sent, num_bytes=2000)
        if num_sent:
            last = 100 + num_sent - 1 if num_sent <= 1000 else 2000 + num_sent - 1000 - 1
            await until(lambda: bool(theirs.memory[last]))
        assert writer.revoke(1)
        theirs.memory[:] = 99  # another's from now on
        frozen.stream.sendall(b"x" * (2000 - num_sent))
        expected = FrameAnswer.REVOKED if num_sent else FrameAnswer.REFUSED
        assert await asyncio.to_thread(frozen.answer) == expected
        assert (theirs.memory == 99).all()

        writer.admit(1, lambda spans: True)
        frozen.frame(1, (0, 3), payload=b"abc")  # and the stream goes on
        assert await asyncio.to_thread(frozen.answer) == FrameAnswer.LANDED
        frozen.close()

    async def test_half_a_frame_of_a_lost_stream_is_all_that_ever_lands(
        self, ends: tuple[End, End]
    ) -> None:
        half = Intruder("a", ends[1])
        half.frame(1, (100, 1000), payload=b"x" * 400, num_bytes=1000)
        await until(lambda: bool(ends[1].memory[499]))
        half.close()
        await until(lambda: ends[1].counters["num_lost_streams"] == 1)
        assert np.flatnonzero(ends[1].memory).tolist() == list(range(100, 500))

    async def test_admitted_anew_the_old_leave_is_gone(self, ends: tuple[End, End]) -> None:
        ours, theirs = ends
        writer = await theirs.transport.connect(ours.transport.address)
        frozen = Intruder("a", theirs)
        frozen.frame(1, (0, 1000), payload=b"x" * 400, num_bytes=1000)
        await until(lambda: bool(theirs.memory[399]))
        writer.admit(1, lambda spans: bool((spans.offsets >= 4000).all()))
        theirs.memory[:] = 99
        frozen.stream.sendall(b"x" * 600)
        assert await asyncio.to_thread(frozen.answer) == FrameAnswer.REVOKED
        assert (theirs.memory == 99).all()
        writer.admit(1, lambda spans: True)
        frozen.close()
