"""One exchange of HTTP, over ASGI: what was asked, how long there is, and the way to answer.

Owns when a response has begun and ended, and learns that the caller has gone. Knows no resource.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Final, Protocol, Self

from cluster.errors import PeerError
from cluster.limits import Limits
from router.callers.key_file import ANYBODY, ApiKey
from router.http.contract import NO_OTHER_NAMES
from router.http.errors import Header, HttpRefusal, failure_frame

AsgiMessage = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]

ABORT: Final = "penstock.abort"  # in a scope's extensions: drops the connection, unsent bytes too
REQUEST_ID_KEY: Final = "x-request-id"
RESUME_KEY: Final = "x-resume-key"
_TIMEOUT_KEY: Final = "x-request-timeout"
_JSON: Final[Header] = (b"content-type", b"application/json")
# Proxies that gather what they pass on would hold a stream back.
_STREAM: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Counted(Protocol):
    """A part of a call that knows how far it is."""

    @property
    def phase(self) -> str: ...

    @property
    def tokens_emitted(self) -> int: ...


class HttpCall:
    """Its parts, one a prompt, count what was sent."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self._headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # the first one counts
        self.key: ApiKey = ANYBODY  # who asks, once he was let in
        self.request_id = ""  # once it is known; goes with the answer
        self.told: dict[str, str] = {}  # headers that go with the answer besides
        self.resume_key = ""  # goes with a stream that can be gone on with
        self.parts: list[Counted] = []
        self.step = "request"  # before there are parts
        self.names = NO_OTHER_NAMES  # of its fields
        self.failure_frame = failure_frame  # how a stream says that it failed
        self.is_begun = False
        self.is_stream = False
        self.is_ended = False
        self.is_gone = False  # the caller
        self.deadline = time.monotonic() + limits.default_deadline_s
        self._max_deadline_s = limits.max_deadline_s

    # What was asked

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @property
    def phase(self) -> str:
        return self.parts[-1].phase if self.parts else self.step

    @property
    def tokens_emitted(self) -> int:
        return sum(part.tokens_emitted for part in self.parts)

    @property
    def remaining_s(self) -> float | None:
        return max(0.0, self.deadline - time.monotonic())

    def header(self, name: str) -> str | None:
        """Reads the first of this name, given in lower case."""
        value = self._headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

    def all_headers(self, name: str) -> list[str]:
        """Reads all of this name, of which there may be several."""
        named = name.encode()
        return [value.decode("latin-1") for key, value in self.scope["headers"] if key == named]

    def set_deadline(self) -> None:
        """As the caller says in a header, in seconds. Raises HttpRefusal."""
        if (said := self.header(_TIMEOUT_KEY)) is None:
            return
        try:
            seconds = float(said)
        except ValueError:
            seconds = 0.0
        if not 0.0 < seconds < float("inf"):
            raise HttpRefusal(
                400, "invalid_request", f"'{_TIMEOUT_KEY}' must be seconds, more than 0."
            )
        self.deadline = time.monotonic() + min(seconds, self._max_deadline_s)

    # The answer

    async def answer(self, status: int, body: bytes, *headers: Header) -> None:
        """Sends all of it."""
        length = (b"content-length", b"%d" % len(body))
        await self._begin(status, (_JSON, length, *headers))
        await self._write(body, is_last=True)

    async def answer_as(self, content_type: str, body: bytes) -> None:
        """Sends all of what is asked for."""
        length = (b"content-length", b"%d" % len(body))
        await self._begin(200, ((b"content-type", content_type.encode()), length))
        await self._write(body, is_last=True)

    async def begin_json(self) -> None:
        """Begins an answer of which the length is not known yet."""
        await self._begin(200, (_JSON,))

    async def begin_stream(self) -> None:
        if not self.is_begun:
            self.is_stream = True
            key = (RESUME_KEY.encode(), self.resume_key.encode())
            await self._begin(200, (*_STREAM, key) if self.resume_key else _STREAM)

    async def write(self, data: bytes) -> None:
        """Sends a part of the answer; waits while the caller does not read."""
        await self._write(data, is_last=False)

    async def end(self, data: bytes = b"") -> None:
        await self._write(data, is_last=True)

    def abort(self) -> None:
        """Drops the connection: whoever reads sees that the answer is not whole."""
        self.is_ended = True
        self.scope["extensions"][ABORT]()

    async def _begin(self, status: int, headers: tuple[Header, ...]) -> None:
        self.is_begun = True
        if self.request_id:
            headers = (*headers, (REQUEST_ID_KEY.encode(), self.request_id.encode()))
        if self.told:
            told = ((name.encode(), value.encode()) for name, value in self.told.items())
            headers = (*headers, *told)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _write(self, data: bytes, *, is_last: bool) -> None:
        if self.is_gone:
            raise PeerError("The caller has ended the call.")
        self.is_ended = is_last
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})


class Listening:
    """Within its scope the caller is listened to, whose request has been read: when he goes the
    scope's task is cancelled. Every `idle_s` meanwhile `idle` is done, where it is given."""

    def __init__(
        self,
        call: HttpCall,
        idle_s: float | None = None,
        idle: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._call = call
        self._idle_s = idle_s
        self._idle = idle

    async def __aenter__(self) -> Self:
        self._owner = asyncio.current_task()
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listening.cancel()

    async def _listen(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    message = await self._call.receive()
            except TimeoutError:
                if self._idle is not None:
                    await self._idle()
            else:
                if message["type"] == "http.disconnect":
                    break
        if not self._call.is_ended:
            self._call.is_gone = True
            if self._owner is not None:
                self._owner.cancel()
