"""One connection of frames, the same at both ends: what is written in one turn of the loop leaves
at once, and a peer whose machine is gone is noticed.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final, cast

from cluster.frames.wire import FrameKind, FrameReader, frame_bytes

_UNSENT_BYTES: Final = 256 << 10  # beyond these whoever writes waits
_IDLE_S, _PROBE_S, _NUM_PROBES = 20, 5, 4  # a peer whose machine is gone is lost after 40 s


class FrameConnection(asyncio.Protocol):
    """Calls `made` once it is there, `take(kind, stream, payload)` with each frame, `resumed` when
    it is writable again, and `lost` once, at its end."""

    def __init__(
        self,
        take: Callable[[int, int, bytes], None],
        lost: Callable[[], None],
        made: Callable[[], None] = lambda: None,
        resumed: Callable[[], None] = lambda: None,
    ) -> None:
        self._take = take
        self._tell_made = made
        self._tell_lost = lost
        self._tell_resumed = resumed
        self._reader = FrameReader()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._unwritten: list[bytes] = []
        self._writable = asyncio.Event()
        self._writable.set()
        self.is_lost = False

    def write(self, kind: FrameKind, stream: int, payload: bytes = b"") -> None:
        """At most MAX_PAYLOAD_BYTES."""
        self.write_frames(frame_bytes(kind, stream, payload))

    def write_frames(self, data: bytes) -> None:
        """Writes them with all others of this turn of the loop."""
        if not self._unwritten:
            self._loop.call_soon(self._flush)
        self._unwritten.append(data)

    @property
    def is_writable(self) -> bool:
        """Whether what was written leaves; if not, `writable` waits until it does, or is lost."""
        return self._writable.is_set()

    async def writable(self) -> None:
        await self._writable.wait()

    def close(self) -> None:
        """Ends it after what was written; at once, where the peer does not read."""
        self._flush()
        if self._transport is not None:
            self._transport.close() if self.is_writable else self._transport.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        if self._unwritten and self._transport is not None and not self.is_lost:
            self._transport.write(b"".join(self._unwritten))
        self._unwritten.clear()

    # -- called by the loop ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._transport.set_write_buffer_limits(high=_UNSENT_BYTES)
        if (stream := transport.get_extra_info("socket")) is not None:
            _notice_who_is_gone(stream)
        self._tell_made()

    def data_received(self, data: bytes) -> None:
        try:
            for kind, stream, payload in self._reader.feed(data):
                self._take(kind, stream, payload)
        except ValueError:
            self.abort()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()
        self._tell_resumed()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self._writable.set()
        self._tell_lost()


def _notice_who_is_gone(stream: socket.socket) -> None:
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _NUM_PROBES),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * (_IDLE_S + _PROBE_S * _NUM_PROBES)),
    ):
        with contextlib.suppress(OSError):
            stream.setsockopt(level, option, value)
