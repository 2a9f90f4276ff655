"""Answers outlive their router: over connections of frames that end, fall silent and come back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cluster.channel import open_channel
from cluster.errors import AnswerGone, AnswerMoved, InvalidRequest, WorkerLost
from cluster.frames.wire import FrameKind, cost
from cluster.lateness import AttentiveClock
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import worker_pb2
from router.frame_channel import FrameChannel, FrameExchange
from router.links import Link
from tests.cluster.cluster_samples import member
from tests.workers.frames_rig import TOKEN, Host, deaf, hosting
from worker import frame_server
from worker.frame_call import FrameCall
from worker.kept_messages import KeptMessages
from worker.outliving import DEFAULT_GRACE, AnswerKey, Grace, Outliving

Request = worker_pb2.DecodeRequest
KEY = AnswerKey("tenant", "r1", b"s" * 16)
NUM_TOKENS = 30


def said(index: int, *, choice: int = 0, num: int = 1) -> pb.GenerateResponse:
    ids = range(index, index + num)
    return pb.GenerateResponse(deltas=[pb.Delta(choice=choice, index=index, token_ids=ids)])


def tokens(messages: list[bytes]) -> list[int]:
    """Of all of them, which must follow each other."""
    found: list[int] = []
    for data in messages:
        for delta in pb.GenerateResponse.FromString(data).deltas:
            assert delta.index == delta.token_ids[0]
            found += delta.token_ids
    return found


class Writer:
    """Answers with numbered tokens, as many as it is told to."""

    def __init__(self) -> None:
        self.may_say = asyncio.Semaphore(0)
        self.num_said = 0

    async def __call__(self, request: Request, call: FrameCall) -> None:
        assert call.outlive(KEY, num_emitted=[0]) or not request.resume_secret
        for index in range(NUM_TOKENS):
            await self.may_say.acquire()
            message = said(index)
            if index == 0:
                message.accepted.request_id = KEY.request_id
            if index == NUM_TOKENS - 1:
                message.finished.SetInParent()
            await call.send(message)
            self.num_said += 1

    def say(self, num: int) -> None:
        for _ in range(num):
            self.may_say.release()


class Reading:
    """What one call brings, as it comes."""

    def __init__(self, guest: FrameChannel, request: bytes, *, is_attached: bool = False) -> None:
        self.messages: list[bytes] = []
        self._came = asyncio.Event()
        start = guest.attach if is_attached else guest.stream
        self._call = start(request, timeout_s=20)
        self.task = asyncio.create_task(self._run())

    async def until(self, num: int) -> None:
        async with asyncio.timeout(10):
            while len(tokens(self.messages)) < num:
                self._came.clear()
                await self._came.wait()

    async def _run(self) -> None:
        async with self._call:
            await self._call.pass_to(self._take)

    async def _take(self, data: bytes) -> None:
        self.messages.append(data)
        self._came.set()


def begun(guest: FrameChannel) -> Reading:
    return Reading(guest, Request(resume_secret=KEY.secret).SerializeToString())


def reattaching(guest: FrameChannel, next_index: int) -> FrameExchange:
    """Not read by anybody yet."""
    answer = pb.AttachRequest(
        request_id=KEY.request_id, resume_secret=KEY.secret, next_index=[next_index]
    )
    request = worker_pb2.Reattach(tenant=KEY.tenant, answer=answer)
    return guest.attach(request.SerializeToString(), timeout_s=20)


def attached(guest: FrameChannel, next_index: int, *, epoch: int = 0, **other: str) -> Reading:
    answer = pb.AttachRequest(
        request_id=other.get("request_id", KEY.request_id),
        resume_secret=other.get("secret", KEY.secret.decode()).encode(),
        next_index=[next_index],
        epoch=epoch,
    )
    request = worker_pb2.Reattach(tenant=other.get("tenant", KEY.tenant), answer=answer)
    return Reading(guest, request.SerializeToString(), is_attached=True)


@asynccontextmanager
async def writing(grace: Grace = DEFAULT_GRACE) -> AsyncIterator[tuple[Host, Writer]]:
    writer = Writer()
    async with hosting(writer, grace=grace) as host:
        yield host, writer


async def lost(reading: Reading, guest: FrameChannel) -> None:
    """Its router is killed."""
    guest.close()
    with pytest.raises(WorkerLost):
        await reading.task


@pytest.mark.parametrize("num_read", [1, 7, 20, 29])
async def test_who_attaches_gets_what_follows_and_nothing_twice(num_read: int) -> None:
    async with writing() as (host, writer):
        guest = await host.guest()
        first = begun(guest)
        writer.say(20)
        await first.until(20)
        await lost(first, guest)
        have = tokens(first.messages)[: min(num_read, 20)]  # the rest did not reach the client
        writer.say(NUM_TOKENS)
        second = attached(await host.guest(), len(have))
        await second.task
        assert have + tokens(second.messages) == list(range(NUM_TOKENS))
        said = [pb.GenerateResponse.FromString(data) for data in second.messages]
        assert said[-1].HasField("finished")
        assert not any(message.HasField("accepted") for message in said)


async def test_an_answer_that_has_ended_is_kept_for_a_while_and_so_is_how_it_ended() -> None:
    async with writing() as (host, writer):
        first = begun(await host.guest())
        writer.say(NUM_TOKENS)
        await first.task
        assert host.open_calls.num == 0
        again = attached(await host.guest(), NUM_TOKENS - 3)
        await again.task
        assert tokens(again.messages) == list(range(NUM_TOKENS))[-3:]

    async def fail(request: Request, call: FrameCall) -> None:
        call.outlive(KEY, num_emitted=[0])
        await call.send(said(0))
        raise InvalidRequest("stop", "No.")

    async with hosting(fail) as host:
        failed = begun(await host.guest())
        with pytest.raises(InvalidRequest):
            await failed.task
        again = attached(await host.guest(), 0)
        with pytest.raises(InvalidRequest):
            await again.task
        assert tokens(again.messages) == [0]


async def test_nothing_is_told_to_who_does_not_know_the_secret() -> None:
    async with writing() as (host, writer):
        first = begun(await host.guest())
        writer.say(1)
        await first.until(1)
        guest = await host.guest()
        for wrong in ({"secret": "t" * 16}, {"tenant": "other"}, {"request_id": "r2"}):
            with pytest.raises(AnswerGone):
                await attached(guest, 0, **wrong).task
        writer.say(NUM_TOKENS)
        await first.task
        assert len(tokens(first.messages)) == NUM_TOKENS


async def test_an_answer_that_moved_is_told_to_who_had_it_and_his_word_counts_no_more() -> None:
    async with writing() as (host, writer):
        old, new = await host.guest(), await host.guest()
        first = begun(old)
        writer.say(3)
        await first.until(3)
        second = attached(new, 3, epoch=2)
        writer.say(2)
        await second.until(2)
        with pytest.raises(AnswerMoved):  # and so it never cancels
            await first.task
        with pytest.raises(AnswerMoved):  # a router that slept over it
            await attached(old, 3, epoch=1).task
        writer.say(NUM_TOKENS)
        await second.task
        assert tokens(second.messages) == list(range(3, NUM_TOKENS))


async def test_who_leaves_has_cancelled_and_a_router_that_stops_has_not() -> None:
    async with writing() as (host, writer):
        guest = await host.guest()
        first = begun(guest)
        writer.say(2)
        await first.until(2)
        guest.is_leaving = True
        first.task.cancel()
        await asyncio.wait([first.task])
        guest.close()
        second = attached(await host.guest(), 2)
        writer.say(2)
        await second.until(2)
        assert host.ended == []
        second.task.cancel()
        await host.until_ended(1)
        assert host.ended == ["CancelledError"]
        with pytest.raises(AnswerGone):
            await attached(await host.guest(), 2).task


async def test_who_attaches_just_behind_a_cancel_is_told_that_it_is_gone() -> None:
    may_end = asyncio.Event()

    async def slow(request: Request, call: FrameCall) -> None:
        call.outlive(KEY, num_emitted=[0])
        await call.send(said(0))
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()  # it has something to give back

    async with hosting(slow) as host:
        guest = await host.guest()
        first = begun(guest)
        await first.until(1)
        first.task.cancel()
        await asyncio.wait([first.task])
        with pytest.raises(AnswerGone):
            async with asyncio.timeout(2):
                await attached(guest, 1).task
        may_end.set()
        await host.until_ended(1)
        assert host.ended == ["CancelledError"]


async def test_who_attaches_again_and_again_and_reads_nothing_holds_one_answer_alone() -> None:
    num_bytes, num_calls = 400, 20

    async def long(request: Request, call: FrameCall) -> None:
        call.outlive(KEY, num_emitted=[0])
        for index in range(NUM_TOKENS):
            message = said(index)
            message.deltas[0].text = num_bytes * "x"
            await call.send(message)

    async with hosting(long) as host:
        await begun(await host.guest()).task
        guest = await host.guest()
        calls = [reattaching(guest, 0) for _ in range(num_calls)]
        async with contextlib.AsyncExitStack() as stack:
            for call in calls:
                await stack.enter_async_context(call)
            last = attached(guest, 0)
            await last.task
            assert len(tokens(last.messages)) == NUM_TOKENS
            assert sum(len(call._waiting) for call in calls) == 0
            for call in calls:
                with pytest.raises(AnswerMoved):
                    await call.pass_to(last._take)


async def test_nobody_is_attached_to_where_answers_end_with_their_streams() -> None:
    """A release before knows no such frame: it would hang up on all its answers."""
    async with deaf() as (host, guest), open_channel(guest.address, TOKEN) as channel:
        link = Link(member("w1").worker, channel)
        link._frames = guest
        link._has_joined.set()
        messages: list[bytes] = []

        async def take(data: bytes) -> None:
            messages.append(data)

        with pytest.raises(AnswerGone):
            async with asyncio.timeout(5):
                await link.attach(b"", 5, take)
        other = begun(guest)
        await asyncio.sleep(0)
        other.task.cancel()
        assert await host.kinds_until_cancelled() == [FrameKind.START, FrameKind.CANCEL]


async def test_nobody_comes_and_all_is_freed_at_the_end_of_the_grace() -> None:
    async with writing(Grace(seconds=0.1)) as (host, writer):
        guest = await host.guest()
        first = begun(guest)
        writer.say(2)
        await first.until(2)
        await lost(first, guest)
        await host.until_ended(1)
        assert host.open_calls.num == 0
        with pytest.raises(AnswerGone):
            await attached(await host.guest(), 2).task
        assert host.frames.outliving.counters() == {
            "detached_answers": 0,
            "answers_attached": 0,
            "answers_given_up": 1,
        }


async def test_what_nobody_can_ask_for_ends_with_its_connection() -> None:
    async with writing() as (host, _):
        guest = await host.guest()
        first = begun(guest)  # and has no token yet
        await host.until_begun(1)
        await lost(first, guest)
        await host.until_ended(1)
        assert host.ended == ["CancelledError"]


async def test_more_than_may_be_kept_is_given_up_the_oldest_first() -> None:
    num = 4

    async def large(request: Request, call: FrameCall) -> None:
        key = AnswerKey("tenant", request.request_id, request.resume_secret)
        call.outlive(key, num_emitted=[0])
        message = said(0)
        message.deltas[0].text = "x" * 1000
        await call.send(message)
        await asyncio.Event().wait()

    async with hosting(large, grace=Grace(most_bytes=2500)) as host:
        guest = await host.guest()
        readings = []
        for number in range(num):
            request = Request(request_id=f"r{number}", resume_secret=KEY.secret)
            readings.append(Reading(guest, request.SerializeToString()))
            await readings[-1].until(1)
        guest.close()
        await host.until_ended(2)
        await asyncio.gather(*(each.task for each in readings), return_exceptions=True)
        new = await host.guest()
        for number in range(num):
            again = attached(new, 0, request_id=f"r{number}")
            if number < 2:
                with pytest.raises(AnswerGone):
                    await again.task
            else:
                await again.until(1)
                again.task.cancel()
                await asyncio.wait([again.task])


async def test_a_router_that_fell_silent_gets_its_answers_back_when_it_wakes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frame_server, "SILENT_S", 0.1)
    monkeypatch.setattr(frame_server, "ALIVE_S", 0.05)
    async with writing() as (host, writer):
        guest = await host.guest()
        assert guest._beat is not None
        guest._beat.cancel()
        first = begun(guest)
        writer.say(2)
        await first.until(2)
        async with asyncio.timeout(10):
            while not host.frames.outliving.counters()["detached_answers"]:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        writer.say(NUM_TOKENS)
        assert writer.num_said == 2  # it is held up
        guest._say_alive()
        await first.task
        assert tokens(first.messages) == list(range(NUM_TOKENS))


async def test_a_silent_router_is_told_when_its_answers_are_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frame_server, "SILENT_S", 0.1)
    monkeypatch.setattr(frame_server, "ALIVE_S", 0.05)
    async with writing(Grace(seconds=0.1)) as (host, writer):
        guest = await host.guest()
        assert guest._beat is not None
        guest._beat.cancel()
        first = begun(guest)
        writer.say(2)
        await first.until(2)
        with pytest.raises(WorkerLost):  # so it goes on elsewhere, after what it had
            await first.task
        await host.until_ended(1)


async def test_a_router_of_before_ends_its_answers_with_its_connection() -> None:
    async with writing(Grace(seconds=0.0)) as (
        host,
        writer,
    ):  # by which no router says that it lives
        guest = await host.guest()
        first = Reading(guest, b"")
        writer.say(2)
        await first.until(2)
        await lost(first, guest)
        await host.until_ended(1)
        assert host.ended == ["CancelledError"]


class Said:
    """An answer that has said so much."""

    def __init__(self, num_bytes: int, *, has_ended: bool) -> None:
        self.kept = KeptMessages()
        self.kept.add(bytes(num_bytes), num_bytes)
        self.has_ended = has_ended
        self.was_given_up = False

    def give_up(self) -> None:
        self.was_given_up = True


async def test_answers_that_have_ended_push_out_none_that_goes_on() -> None:
    outliving: Outliving[Said] = Outliving(AttentiveClock(), Grace(most_bytes=5_000))
    detached, *ended = [Said(1_000, has_ended=number > 0) for number in range(10)]
    for number, answer in enumerate((detached, *ended)):
        outliving.keep(AnswerKey("", str(number), b""), answer)
        outliving.leave(answer)
    assert not detached.was_given_up
    assert [answer.was_given_up for answer in ended] == [True] * 4 + [False] * 5
    outliving.forget(detached)
    assert outliving.counters()["detached_answers"] == 0
    outliving.close()


# What is kept


def test_of_several_choices_each_goes_on_where_its_client_is() -> None:
    kept = KeptMessages([0, 0])
    both = pb.GenerateResponse(deltas=[*said(0).deltas, *said(0, choice=1).deltas])
    both.accepted.model = "m"
    for message in (both, said(1, num=3), said(1, choice=1)):
        add(kept, message)
    found = [pb.GenerateResponse.FromString(data) for data in kept.after([1, 0])]
    assert [(d.choice, d.index) for m in found for d in m.deltas] == [(1, 0), (0, 1), (1, 1)]
    assert not found[0].HasField("accepted")
    assert kept.after([4, 2]) == []
    with pytest.raises(InvalidRequest):
        kept.after([2, 0])  # in the middle of a message


def test_of_a_long_answer_the_end_is_kept_and_before_that_nothing_is_made_up() -> None:
    kept = KeptMessages(most_bytes=2_000)
    for index in range(1_000):
        add(kept, said(index))
        assert kept.num_bytes <= 4_000 + 100
    first = next(i for i in range(1_000) if _is_kept(kept, i))
    assert 900 < first < 990
    assert tokens(kept.after([first])) == list(range(first, 1_000))
    assert not any(_is_kept(kept, index) for index in range(first))


def test_of_an_answer_that_went_on_here_nothing_before_that_is_passed_over() -> None:
    kept = KeptMessages([5, 3])
    for next_index in ([4, 3], [5, 2]):
        with pytest.raises(AnswerGone):  # though nothing was said here yet
            kept.after(next_index)
    assert kept.after([5, 3]) == []
    add(kept, said(5))
    with pytest.raises(AnswerGone):  # the other choice may have ended before
        kept.after([5, 2])
    assert tokens(kept.after([5, 3])) == [5]


@pytest.mark.parametrize("next_index", [3, (1 << 32) - 1])
def test_who_has_more_than_was_said_here_had_it_from_another_worker(next_index: int) -> None:
    kept = KeptMessages()
    add(kept, said(0, num=2))
    assert kept.after([2]) == []
    with pytest.raises(AnswerGone):
        kept.after([next_index])


@pytest.mark.parametrize("next_index", [[0], [0, 0, 0]])
def test_a_place_is_one_of_each_choice(next_index: list[int]) -> None:
    kept = KeptMessages([0, 0])
    add(kept, said(0, choice=1))
    with pytest.raises(InvalidRequest):
        kept.after(next_index)


def test_how_an_answer_ended_is_kept_however_large_its_last_message_is() -> None:
    kept = KeptMessages(most_bytes=100)
    last = said(1)
    last.deltas[0].text = "x" * 1_000
    last.finished.SetInParent()
    for message in (said(0), last):
        add(kept, message)
    [rest] = kept.after([2])
    assert pb.GenerateResponse.FromString(rest).HasField("finished")
    assert tokens(kept.after([1])) == [1]


def add(kept: KeptMessages, message: pb.GenerateResponse) -> None:
    data = message.SerializeToString()
    kept.add(data, cost(data))


def _is_kept(kept: KeptMessages, index: int) -> bool:
    with contextlib.suppress(AnswerGone):
        kept.after([index])
        return True
    return False
