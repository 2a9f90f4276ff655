"""What a router and a decode worker notice of each other over a connection of frames."""

import asyncio
import contextlib
import random
import resource

import pytest

from cluster.authority import PLAIN, Credentials, create_authority
from cluster.channel import INTERNAL_MESSAGE_BYTES
from cluster.errors import (
    DeadlineExceeded,
    Draining,
    InternalError,
    InvalidRequest,
    Overloaded,
    PenstockError,
    StreamInterrupted,
    WorkerLost,
)
from cluster.frames.invitation import Invitation, Invitations, new_nonce
from cluster.frames.wire import (
    MAX_PAYLOAD_BYTES,
    START,
    WINDOW_BYTES,
    FrameKind,
    FrameReader,
    frame_bytes,
    in_parts,
)
from penstock.v1 import worker_pb2
from router.frame_channel import FrameChannel
from tests.identities import BEYOND_LOOPBACK, half_trusted, shown
from tests.workers.frames_rig import Host, hosting, message, numbers, taken
from worker import frame_server
from worker.frame_call import FrameCall

Request = worker_pb2.DecodeRequest


async def ten(request: Request, call: FrameCall) -> None:
    for number in range(10):
        await call.send(message(number))


async def for_ever(request: Request, call: FrameCall) -> None:
    await call.send(message(0))
    await asyncio.Event().wait()


@pytest.mark.parametrize("sizes", [[1], [7], [9, 1, 60_000], [1 << 20]])
def test_frames_are_found_however_they_come(sizes: list[int]) -> None:
    payloads = [b"", b"a", bytes(MAX_PAYLOAD_BYTES), random.Random(0).randbytes(3_000)]
    data = b"".join(frame_bytes(FrameKind.MESSAGE, i, each) for i, each in enumerate(payloads))
    reader, found, at = FrameReader(), [], 0
    while at < len(data):
        for size in sizes:
            found += reader.feed(data[at : at + size])
            at += size
    assert [payload for _, _, payload in found] == payloads
    assert [stream for _, stream, _ in found] == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [0, 1, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1, 200_000])
def test_what_is_cut_into_parts_is_the_same_when_they_are_joined(size: int) -> None:
    data = random.Random(size).randbytes(size)
    frames = FrameReader().feed(b"".join(in_parts(data, FrameKind.MESSAGE, FrameKind.PART, 1)))
    assert b"".join(payload for _, _, payload in frames) == data
    assert frames[-1][0] == FrameKind.MESSAGE
    assert {kind for kind, _, _ in frames[:-1]} <= {FrameKind.PART}


async def test_messages_come_in_order_and_the_call_ends() -> None:
    async with hosting(ten) as host:
        guest = await host.guest()
        answers = await asyncio.gather(*(taken(guest) for _ in range(20)))
        assert all(numbers(each) == list(range(10)) for each in answers)
        assert host.open_calls.num == 0


async def test_beyond_loopback_all_of_it_is_under_tls() -> None:
    credentials, address = shown(create_authority()), f"{BEYOND_LOOPBACK}:0"
    async with hosting(ten, address=address, credentials=credentials) as host:
        assert numbers(await taken(await host.guest(credentials))) == list(range(10))
        with pytest.raises(WorkerLost):
            await host.guest(half_trusted(create_authority()))
        reader, writer = await asyncio.open_connection(BEYOND_LOOPBACK, host.frames.port)
        writer.write(frame_bytes(FrameKind.HELLO, 0, bytes(80)))
        assert b"invited" not in await reader.read()
        writer.close()


async def test_large_requests_and_messages_pass_and_hold_up_no_other() -> None:
    async def echo(request: Request, call: FrameCall) -> None:
        await call.send(message(len(request.prompt_token_ids), num_letters=300_000))

    async with hosting(echo) as host:
        guest = await host.guest()
        large = Request(prompt_token_ids=[1 << 27] * 1_000_000).SerializeToString()
        small = Request(prompt_token_ids=[1]).SerializeToString()
        async with asyncio.TaskGroup() as tasks:
            slow = tasks.create_task(taken(guest, large))
            quick = await taken(guest, small)
            assert numbers(quick) == [1]
        assert numbers(slow.result()) == [1_000_000]


@pytest.mark.parametrize(
    "failure",
    [
        Overloaded("Too much."),
        InvalidRequest("stop.max_tokens", "Ask for fewer."),
        StreamInterrupted("After three.", tokens_emitted=3),
        DeadlineExceeded("decode", tokens_emitted=2),
    ],
)
async def test_an_error_arrives_as_it_was_raised(failure: PenstockError) -> None:
    async def fail(request: Request, call: FrameCall) -> None:
        await call.send(message(0))
        raise failure

    async with hosting(fail) as host:
        guest = await host.guest()
        with pytest.raises(type(failure)) as caught:
            await taken(guest)
        assert caught.value.message == failure.message
        assert caught.value.metadata == failure.metadata


async def test_a_fault_is_told_by_its_id_alone() -> None:
    async def fail(request: Request, call: FrameCall) -> None:
        raise RuntimeError("the secret of it")

    async with hosting(fail) as host:
        with pytest.raises(InternalError) as caught:
            await taken(await host.guest())
        assert "secret" not in caught.value.message


async def test_bytes_that_are_no_request_are_the_callers_fault() -> None:
    async with hosting(ten) as host:
        guest = await host.guest()
        with pytest.raises(InvalidRequest):
            await taken(guest, b"\xff\xff\xff")
        assert numbers(await taken(guest)) == list(range(10))


async def test_who_leaves_is_noticed_and_the_others_are_not_disturbed() -> None:
    async with hosting(for_ever) as host:
        guest = await host.guest()
        leaving, staying = (asyncio.create_task(taken(guest)) for _ in range(2))
        await host.until_begun(2)
        leaving.cancel()
        await host.until_ended(1)
        assert host.ended == ["CancelledError"]
        assert host.open_calls.num == 1
        staying.cancel()


@pytest.mark.alone  # 25 ms lie between both ends' timers
async def test_a_deadline_ends_the_call_at_both_ends_with_the_phase() -> None:
    async with hosting(for_ever) as host:
        guest = await host.guest()
        with pytest.raises(DeadlineExceeded) as caught:
            await taken(guest, timeout_s=0.3)
        assert caught.value.metadata["phase"] == "request"  # its server's word, not our timer's
        await host.until_ended(1)


async def test_by_the_end_of_the_connection_both_ends_end_their_calls() -> None:
    async with hosting(for_ever) as host:
        guest, came = await host.guest(), asyncio.Queue[bytes]()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(_lost(guest, came))
            for _ in range(3):
                await came.get()
            guest.close()
        await host.until_ended(3)
        assert not guest.is_open
        assert guest.ended.is_set()
        with pytest.raises(WorkerLost):
            await taken(guest)


async def _lost(guest: FrameChannel, came: asyncio.Queue[bytes]) -> None:
    with pytest.raises(WorkerLost):
        async with guest.stream(b"", timeout_s=10) as call:
            await call.pass_to(came.put)


async def test_a_host_that_stops_tells_how_many_tokens_were_sent() -> None:
    async def three(request: Request, call: FrameCall) -> None:
        for number in range(3):
            await call.send(message(number))
        call.tokens_emitted = 3
        await asyncio.Event().wait()

    async with hosting(three) as host:
        guest = await host.guest()
        call = asyncio.create_task(taken(guest))
        await host.until_begun(1)
        host.open_calls.cut_off()
        with pytest.raises(Draining):
            await taken(guest)
        await host.frames.stop()
        with pytest.raises(StreamInterrupted) as caught:
            await call
        assert caught.value.tokens_emitted == 3


async def test_who_does_not_read_pauses_his_own_answer_alone() -> None:
    num_sent = 0

    async def much(request: Request, call: FrameCall) -> None:
        nonlocal num_sent
        is_unread = len(request.prompt_token_ids) > 0
        for number in range(200):
            await call.send(message(number, num_letters=4_000))
            num_sent += is_unread

    async with hosting(much) as host:
        guest, go_on = await host.guest(), asyncio.Event()

        async def look_away(data: bytes) -> None:
            messages.append(data)
            await go_on.wait()

        async def read_late() -> None:
            request = Request(prompt_token_ids=[1]).SerializeToString()
            async with guest.stream(request, timeout_s=20) as call:
                await call.pass_to(look_away)

        messages: list[bytes] = []
        late = asyncio.create_task(read_late())
        for _ in range(5):
            assert len(await taken(guest)) == 200
        assert num_sent <= WINDOW_BYTES // 4_000 + 1
        go_on.set()
        await late
        assert numbers(messages) == list(range(200))


@pytest.mark.parametrize("size", [0, 5])
async def test_small_messages_that_nobody_reads_are_bounded_in_number(size: int) -> None:
    num_sent, num_taken, go_on = 0, 0, asyncio.Event()

    async def small(request: Request, call: FrameCall) -> None:
        nonlocal num_sent
        for _ in range(20_000):
            await call.send(bytes(size))
            num_sent += 1

    async def look_away(data: bytes) -> None:
        nonlocal num_taken
        num_taken += 1
        await go_on.wait()

    async with hosting(small) as host:
        guest = await host.guest()

        async def read_late() -> None:
            async with guest.stream(b"", timeout_s=20) as call:
                await call.pass_to(look_away)

        late = asyncio.create_task(read_late())
        await host.until_begun(1)
        for _ in range(5):
            await taken(guest)  # another, to its end
        assert num_sent - 5 * 20_000 <= 1_024
        go_on.set()
        await late
        assert num_taken == 20_000


# Strangers


def test_an_invitation_is_good_once_for_ten_seconds_and_for_its_holder_alone() -> None:
    now = 0.0
    invitations, nonce = Invitations(lambda: now), new_nonce()
    good, forged, late = (invitations.invite() for _ in range(3))
    assert invitations.welcome(Invitation(forged.name, good.secret).hello(nonce)) is None
    assert invitations.welcome(forged.hello(nonce)) is None  # it was tried
    said = invitations.welcome(good.hello(nonce))
    assert said is not None
    assert good.is_welcome(said, nonce)
    assert not good.is_welcome(said, new_nonce())
    assert invitations.welcome(good.hello(nonce)) is None
    now = 11.0
    assert invitations.welcome(late.hello(nonce)) is None
    for length in (0, 15, 79, 81, 4096):
        assert invitations.welcome(bytes(length)) is None


async def said_to(host: Host, data: bytes, *, guest: Invitation | None = None) -> bytes:
    """What comes back until it hangs up, or nothing for a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", host.frames.port)
    try:
        if guest is not None:
            writer.write(frame_bytes(FrameKind.HELLO, 0, guest.hello(new_nonce())))
            await reader.readexactly(9 + 32)
        writer.write(data)
        if not guest:
            writer.write_eof()
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


BREACHES = {
    "a kind that there is not": frame_bytes(FrameKind.HELLO, 1)[:4] + b"\x63" + bytes(4),
    "a host's frame": frame_bytes(FrameKind.END, 1),
    "too large": b"\xff\xff\xff\x7f" + bytes(5),
    "too short a beginning": frame_bytes(FrameKind.START, 1, b"abc"),
    "too much announced": frame_bytes(
        FrameKind.START, 1, START.pack(1.0, INTERNAL_MESSAGE_BYTES + 1)
    ),
    "more than announced": frame_bytes(FrameKind.START, 1, START.pack(1.0, 1) + b"ab"),
    "no time": frame_bytes(FrameKind.START, 1, START.pack(float("nan"), 1)),
    "twice": 2 * frame_bytes(FrameKind.START, 1, START.pack(1.0, 5)),
    "no credit": frame_bytes(FrameKind.CREDIT, 1),
}


@pytest.mark.parametrize("name", BREACHES)
async def test_a_guest_that_cannot_speak_is_left_and_no_other_notices(name: str) -> None:
    async with hosting(ten) as host:
        guest = await host.guest()
        made = host.frames.invitations.invite()
        assert await said_to(host, BREACHES[name], guest=made) == b""
        assert numbers(await taken(guest)) == list(range(10))


async def hostile(num: int) -> int:
    """Bytes of strangers, beside good calls; returns by how many KiB the process has grown."""
    chances = random.Random(3)
    async with hosting(ten) as host:
        guest = await host.guest()
        begin = 0
        for number in range(num):
            if number == num // 10:
                begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            data = chances.randbytes(chances.randrange(2_000))
            if number % 2:
                data = frame_bytes(chances.choice(list(FrameKind)), chances.randrange(3), data)
            assert await said_to(host, data) == b""
            if number % 50 == 0:
                assert numbers(await taken(guest)) == list(range(10))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin


async def test_strangers_get_no_answer() -> None:
    await hostile(200)


@pytest.mark.prove
async def test_ten_thousand_strangers_leave_nothing_behind() -> None:
    assert await hostile(10_000) <= 5 << 10


async def test_a_crowd_of_strangers_keeps_nobody_out() -> None:
    async with hosting(ten) as host:
        crowd = [await asyncio.open_connection("127.0.0.1", host.frames.port) for _ in range(300)]
        guest = await host.guest()
        assert numbers(await taken(guest)) == list(range(10))
        for _, writer in crowd:
            writer.close()


TLS = (f"{BEYOND_LOOPBACK}:0", shown(create_authority()))


@pytest.mark.parametrize(("address", "credentials"), [("127.0.0.1:0", PLAIN), TLS])
async def test_who_says_nothing_is_left_after_a_while(
    address: str, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_server, "_HELLO_S", 0.05)
    async with hosting(ten, address=address, credentials=credentials) as host:
        where = address.rpartition(":")[0], host.frames.port
        reader, writer = await asyncio.open_connection(*where)
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()


async def test_who_listens_on_all_addresses_is_reached_by_those_of_both_families() -> None:
    async with hosting(ten, address="[::]:0") as host:
        port = host.address.rpartition(":")[2]
        for each in ("127.0.0.1", "[::1]"):
            host.address = f"{each}:{port}"
            assert numbers(await taken(await host.guest())) == list(range(10))
