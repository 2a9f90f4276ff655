"""Takes in the bodies of requests: bounded each and together, before anything of them is parsed."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cluster.errors import InvalidRequest, Overloaded
from router.http.call import HttpCall
from router.http.errors import HttpRefusal

_STALL_S: Final = 20.0  # so long a caller may send nothing of a body that is not whole
_MAX_TOGETHER: Final = 64 << 20  # bytes of bodies that are not whole yet
_FREE_BYTES: Final = 64 << 10  # of a body: so much is taken at any time
# Who is refused in the middle of sending does not always hear it: so many bodies are let pass.
_MAX_PASSED: Final = 4


class Bodies:
    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0

    async def read(self, call: HttpCall) -> bytes:
        """Raises HttpRefusal, InvalidRequest, Overloaded."""
        self._check_head(call)
        if (length := _length(call)) > self._max_bytes:
            await self._refuse(call, length)
        if length > _FREE_BYTES and self._num_bytes + length > _MAX_TOGETHER:
            raise Overloaded("Too many large requests come in at once: send it again later.")
        with self._held() as body:
            while await self._take(call, body):
                if len(body) > self._max_bytes:
                    await self._refuse(call, 0)
        return bytes(body)

    def _check_head(self, call: HttpCall) -> None:
        kind = (call.header("content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HttpRefusal(
                415, "unsupported_media_type", "Send JSON, with 'content-type: application/json'."
            )
        if (call.header("content-encoding") or "identity").lower() != "identity":
            raise HttpRefusal(
                415, "unsupported_encoding", "Send the body as it is, without 'content-encoding'."
            )

    @contextmanager
    def _held(self) -> Iterator[bytearray]:
        """Counts what it holds while it comes in."""
        body = bytearray()
        try:
            yield body
        finally:
            self._num_bytes -= len(body)

    async def _take(self, call: HttpCall, body: bytearray) -> bool:
        """Appends what has come; tells whether more is to come."""
        try:
            async with asyncio.timeout(_STALL_S):
                message = await call.receive()
        except TimeoutError as error:
            raise InvalidRequest(
                "request", f"Nothing more of the body came for {_STALL_S:g} s: send it whole."
            ) from error
        if message["type"] == "http.disconnect":
            call.is_gone = True
            raise InvalidRequest("request", "The call ended before its request was sent.")
        part = message["body"]
        if len(body) > _FREE_BYTES and self._num_bytes + len(part) > _MAX_TOGETHER:
            raise Overloaded("Too many large requests come in at once: send it again later.")
        body += part
        self._num_bytes += len(part)
        return bool(message["more_body"])

    async def _refuse(self, call: HttpCall, length: int) -> None:
        """Lets the rest pass, as far as it is not much more, and says that it is too large."""
        num_left = _MAX_PASSED * self._max_bytes
        is_more = length <= num_left
        while is_more and num_left > 0:
            with self._held() as passed:
                is_more = await self._take(call, passed)
            num_left -= len(passed)
        raise HttpRefusal(
            413,
            "request_too_large",
            f"The body has more than {self._max_bytes} bytes, which is the most: send less.",
        )


def _length(call: HttpCall) -> int:
    """What the head says; 0 where it says nothing."""
    said = call.header("content-length") or ""
    return int(said) if said.isdecimal() and len(said) < 20 else 0
