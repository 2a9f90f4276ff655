"""Both ends of connections of frames in one loop, as a decode worker and a router have them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from cluster.addresses import Endpoint
from cluster.authority import PLAIN, Credentials
from cluster.channel import Channel, open_channel
from cluster.door import door_service
from cluster.frames.invitation import Invitations
from cluster.frames.wire import Frame, FrameKind, FrameReader, frame_bytes
from cluster.lateness import AttentiveClock
from cluster.open_calls import OpenCalls
from cluster.proof import Doorkeeper
from cluster.rpc import Call, Server, service_handlers
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import worker_pb2
from router.frame_channel import FrameChannel
from worker.frame_call import FrameCall
from worker.frame_server import FrameServer
from worker.outliving import DEFAULT_GRACE, Grace

DECODE = "penstock.v1.Decode"
TOKEN = "the-token"

Answer = Callable[[worker_pb2.DecodeRequest, FrameCall], Awaitable[None]]


class Host:
    """Whose answers come by frames."""

    def __init__(self, frames: FrameServer, channel: Channel, address: str) -> None:
        self.frames = frames
        self.channel = channel
        self.address = address
        self.open_calls = OpenCalls()
        self.num_begun = 0  # calls
        self.ended: list[str] = []  # how each call has, on its side
        self._changed = asyncio.Event()
        self.guests: list[FrameChannel] = []

    async def guest(self, credentials: Credentials = PLAIN) -> FrameChannel:
        made = FrameChannel(self.address)
        self.guests.append(made)
        await made.connect(self.channel, credentials)
        return made

    def changed(self) -> None:
        self._changed.set()

    async def until_begun(self, num: int) -> None:
        await self._until(lambda: self.num_begun >= num)

    async def until_ended(self, num: int) -> None:
        await self._until(lambda: len(self.ended) >= num)

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def hosting(
    answer: Answer,
    *,
    address: str = "127.0.0.1:0",
    credentials: Credentials = PLAIN,
    grace: Grace = DEFAULT_GRACE,
) -> AsyncIterator[Host]:
    host: Host

    async def serve(request: worker_pb2.DecodeRequest, call: FrameCall) -> None:
        host.num_begun += 1
        asyncio.get_running_loop().call_soon(host.changed)  # once it has said its first words
        try:
            await answer(request, call)
        except BaseException as error:
            host.ended.append(type(error).__name__)
            raise
        else:
            host.ended.append("well")
        finally:
            host.changed()

    door = Doorkeeper(TOKEN)
    frames = FrameServer(DECODE, "Generate", serve, AttentiveClock(), grace)
    rpcs: dict[str, Any] = {"Frames": frames.invite}
    services = [service_handlers(DECODE, rpcs, door=door), door_service(door)]
    async with Server(services, address=address, credentials=credentials) as server:
        where = server.address
        async with open_channel(where, TOKEN, credentials=credentials) as channel:
            host = Host(frames, channel, where)
            await frames.start(Endpoint.parse(where).host, credentials.at(where), host.open_calls)
            try:
                yield host
            finally:
                for guest in host.guests:
                    guest.close()
                await frames.stop()


class Deaf:
    """A host that welcomes its guest, and reads no more until it is told to."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.listens = asyncio.Event()
        self._was_cancelled = asyncio.Event()
        self._invitations = Invitations(time.monotonic)
        self._server: asyncio.Server | None = None

    async def invite(self, request: worker_pb2.FramesRequest, call: Call) -> Any:
        assert self._server is not None
        made = self._invitations.invite()
        port = self._server.sockets[0].getsockname()[1]
        return worker_pb2.FramesResponse(port=port, name=made.name, secret=made.secret)

    async def serve(self, stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await stream.readexactly(len(frame_bytes(FrameKind.HELLO, 0)) + 80)
        proof = self._invitations.welcome(hello[-80:])
        assert proof is not None
        writer.write(frame_bytes(FrameKind.WELCOME, 0, proof))
        await self.listens.wait()
        reader = FrameReader()
        while data := await stream.read(1 << 20):
            self.frames += reader.feed(data)
            if self.frames and self.frames[-1][0] == FrameKind.CANCEL:
                self._was_cancelled.set()
        writer.close()

    async def kinds_until_cancelled(self) -> list[int]:
        """Reads what it was sent, until a call was cancelled with the last of it."""
        self.listens.set()
        async with asyncio.timeout(10):
            await self._was_cancelled.wait()
        return [kind for kind, _, _ in self.frames]


@asynccontextmanager
async def deaf() -> AsyncIterator[tuple[Deaf, FrameChannel]]:
    """It, and its guest."""
    host, door = Deaf(), Doorkeeper(TOKEN)
    server = await asyncio.start_server(host.serve, "127.0.0.1", 0)
    host._server = server
    services = [service_handlers(DECODE, {"Frames": host.invite}, door=door), door_service(door)]
    async with Server(services) as there, open_channel(there.address, TOKEN) as channel, server:
        guest = FrameChannel(there.address)
        await guest.connect(channel, PLAIN)
        try:
            yield host, guest
        finally:
            guest.close()


async def taken(
    guest: FrameChannel, request: bytes = b"", timeout_s: float | None = 10
) -> list[bytes]:
    """All messages of one call."""
    messages: list[bytes] = []

    async def take(data: bytes) -> None:
        messages.append(data)

    async with guest.stream(request, timeout_s=timeout_s) as call:
        await call.pass_to(take)
    return messages


def message(number: int, num_letters: int = 0) -> pb.GenerateResponse:
    return pb.GenerateResponse(deltas=[pb.Delta(index=number, text="x" * num_letters)])


def numbers(messages: list[bytes]) -> list[int]:
    return [pb.GenerateResponse.FromString(data).deltas[0].index for data in messages]
