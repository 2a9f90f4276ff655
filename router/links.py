"""One channel to each life of a worker, a connection of frames beside it for what is streamed, and
the calls that are open on both.

Knows no placement. When a worker is lost its calls end at once. When only its record is
superseded they go on for as long as they move: a record says less than a living connection.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cluster.authority import PLAIN, Credentials
from cluster.channel import Channel, Exchange
from cluster.errors import (
    AnswerGone,
    NoWorker,
    PenstockError,
    StreamInterrupted,
    UnsupportedFeature,
    WorkerLost,
)
from cluster.types import WorkerAddress, WorkerId
from router.frame_channel import FrameChannel, FrameExchange

logger = logging.getLogger(__name__)

GENERATE = ("penstock.v1.Decode", "Generate")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0  # before frames are tried again

_ENDS = "Its answers end with their streams."

OpenChannel = Callable[[WorkerAddress], Channel]


class Link:
    """The connection to one life of a worker."""

    def __init__(
        self, worker: WorkerAddress, channel: Channel, credentials: Credentials = PLAIN
    ) -> None:
        self.worker = worker
        self.channel = channel
        self._credentials = credentials
        self._frames: FrameChannel | None = None
        self._joining: asyncio.Task[None] | None = None
        self._calls: set[Exchange | FrameExchange] = set()
        self._has_joined = asyncio.Event()  # or tried to
        self._knows_frames = True
        self._num_ended = 0  # messages, of calls that have ended
        self._is_lost = False

    def join(self) -> None:
        """Has a connection of frames made beside the channel: streams go by it once it is there.
        Where the worker knows none, or is not reached there, they go over the channel."""
        self._joining = asyncio.create_task(self._join(), name=f"join {self.worker.worker_id}")

    @property
    def num_messages(self) -> int:
        """That came on its calls so far."""
        return self._num_ended + sum(call.num_received for call in self._calls)

    async def generate(
        self, request: bytes, timeout_s: float | None, take: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Has the worker serve a request, and awaits `take` with every message, unparsed."""
        await self._passed(self._exchange(request, timeout_s), take)

    async def attach(
        self, request: bytes, timeout_s: float | None, take: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """The same for the rest of an answer whose stream was lost, by a `Reattach`.

        Raises AnswerGone where nothing is kept, NoWorker where that cannot be asked yet.
        """
        await self._has_joined.wait()
        frames = self._frames
        if self._is_lost or frames is None or not frames.is_open:
            if self._knows_frames:
                raise NoWorker(f"Worker '{self.worker.worker_id}' is not reached: ask again.")
            raise AnswerGone(_ENDS)
        if not frames.outlives:  # nor may it know what it is to attach: it would hang up
            raise AnswerGone(_ENDS)
        await self._passed(frames.attach(request, timeout_s=timeout_s), take)

    async def _passed(
        self, exchange: Exchange | FrameExchange, take: Callable[[bytes], Awaitable[None]]
    ) -> None:
        if self._is_lost:
            raise self._lost()
        self._calls.add(exchange)
        try:
            async with exchange:
                await exchange.pass_to(take)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_lost and task is not None and not task.cancelling():
                raise self._lost() from None  # it was the call that was cancelled, not we
            raise
        except StreamInterrupted as error:
            # It stopped in the middle of its part: for the rest it is as good as dead.
            raise WorkerLost(error.message) from error
        finally:
            self._calls.discard(exchange)
            self._num_ended += exchange.num_received

    def leave(self) -> None:
        """We stop: answers that are left from now on are not cancelled, where they can go on."""
        if self._frames is not None:
            self._frames.is_leaving = self._frames.outlives

    async def lose(self) -> None:
        """The worker is gone: ends what is open, and the connection."""
        self._is_lost = True
        for call in self._calls:
            call.cancel()
        if self._joining is not None:
            self._joining.cancel()
        if self._frames is not None:
            self._frames.close()
        await self.channel.close()

    def _exchange(self, request: bytes, timeout_s: float | None) -> Exchange | FrameExchange:
        if self._frames is not None and self._frames.is_open:
            return self._frames.stream(request, timeout_s=timeout_s)
        return self.channel.stream(*GENERATE, request, timeout_s=timeout_s, is_raw=True)

    async def _join(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            self._frames = FrameChannel(self.worker.address)
            try:
                await self._frames.connect(self.channel, self._credentials)
                pause_s = _FIRST_PAUSE_S
                self._has_joined.set()
                await self._frames.ended.wait()
            except UnsupportedFeature:
                self._knows_frames = False  # a release before frames
                return
            except PenstockError as error:
                logger.info("no frames from %s: %s", self.worker.worker_id, error.message)
            finally:
                self._has_joined.set()
            await asyncio.sleep(pause_s)
            pause_s = min(2.0 * pause_s, _LONGEST_PAUSE_S)

    def _lost(self) -> WorkerLost:
        return WorkerLost(f"Worker '{self.worker.worker_id}' is gone.")


class Links:
    """The links by worker."""

    def __init__(self, open_channel: OpenChannel, credentials: Credentials = PLAIN) -> None:
        self._open_channel = open_channel
        self._credentials = credentials
        self._links: dict[WorkerId, Link] = {}
        self._dropped: set[Link] = set()

    def open(self, worker: WorkerAddress) -> Link:
        link = Link(worker, self._open_channel(worker), self._credentials)
        link.join()
        self._links[worker.worker_id] = link
        return link

    def get(self, worker: WorkerId) -> Link:
        if (link := self._links.get(worker)) is None:
            raise WorkerLost(f"Worker '{worker}' has left.")
        return link

    def all(self, first: WorkerId | None = None) -> list[Link]:
        """Of all lives that may still stream, those of `first` before the others."""
        links = (*self._links.values(), *self._dropped)
        return sorted(links, key=lambda link: link.worker.worker_id != first)

    def drop(self, worker: WorkerId) -> Link:
        """No new call goes there. What is open on the link goes on until it is lost."""
        link = self._links.pop(worker)
        self._dropped.add(link)
        return link

    async def lose(self, link: Link) -> None:
        """Ends a link that was dropped."""
        self._dropped.discard(link)
        await link.lose()

    def leave(self) -> None:
        """Has what is left from now on go on without us, where it can."""
        for link in self.all():
            link.leave()

    async def close(self) -> None:
        for link in self.all():
            await link.lose()
        self._links.clear()
        self._dropped.clear()
