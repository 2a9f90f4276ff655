"""Takes in the bodies of requests: bounded each and together, before anything of them is parsed."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cluster.errors import InvalidRequest, Overloaded, PenstockError
from router.http.call import HttpCall
from router.http.errors import CLOSE, HttpRefusal

_STALL_S: Final = 20.0  # so long a caller may send nothing of a body that is not whole
_MAX_TOGETHER: Final = 64 << 20  # bytes of bodies that are not whole yet
_FREE_BYTES: Final = 64 << 10  # of a body: so much is taken at any time
# Of a body that is refused: who is interrupted while he sends does not hear why.
_MAX_PASSED: Final = 64 << 20


class Bodies:
    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0

    async def read(self, call: HttpCall) -> bytes:
        """Raises HttpRefusal, InvalidRequest, Overloaded: once the caller has sent all of it,
        unless that is far too much."""
        refusal = _head_refusal(call) or self._refusal(_length(call), _length(call))
        with self._held() as body:
            is_more, num_passed = _length(call) <= _MAX_PASSED, 0
            while is_more and num_passed <= _MAX_PASSED:
                part, is_more = await _part(call)
                refusal = refusal or self._refusal(len(body) + len(part), len(part))
                if refusal is None:
                    body += part
                    self._num_bytes += len(part)
                else:
                    num_passed += len(part)
            if refusal is not None:
                raise refusal
            return bytes(body)

    def _refusal(self, num_bytes: int, num_more: int) -> PenstockError | None:
        """Of a body that has so many bytes, of which so many are not counted yet."""
        if num_bytes > self._max_bytes:
            return HttpRefusal(
                413,
                "request_too_large",
                f"The body has more than {self._max_bytes} bytes, which is the most: send less.",
                CLOSE,
            )
        if num_bytes > _FREE_BYTES and self._num_bytes + num_more > _MAX_TOGETHER:
            return Overloaded("Too many large requests come in at once: send it again later.")
        return None

    @contextmanager
    def _held(self) -> Iterator[bytearray]:
        """Counts what it holds while it comes in."""
        body = bytearray()
        try:
            yield body
        finally:
            self._num_bytes -= len(body)


async def pass_over(call: HttpCall) -> None:
    """Lets the body of a request pass that is refused for what its head says."""
    is_more, num_passed = _length(call) <= _MAX_PASSED, 0
    while is_more and num_passed <= _MAX_PASSED:
        part, is_more = await _part(call)
        num_passed += len(part)


async def _part(call: HttpCall) -> tuple[bytes, bool]:
    """What has come, and whether more is to come."""
    try:
        async with asyncio.timeout(_STALL_S):
            message = await call.receive()
    except TimeoutError as error:
        raise HttpRefusal(
            400,
            "invalid_request",
            f"Nothing more of the body came for {_STALL_S:g} s: send it whole.",
            CLOSE,
        ) from error
    if message["type"] == "http.disconnect":
        call.is_gone = True
        raise InvalidRequest("request", "The call ended before its request was sent.")
    return message["body"], message["more_body"]


def _head_refusal(call: HttpCall) -> HttpRefusal | None:
    kind = (call.header("content-type") or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        return HttpRefusal(
            415, "unsupported_media_type", "Send JSON, with 'content-type: application/json'."
        )
    if (call.header("content-encoding") or "identity").lower() != "identity":
        return HttpRefusal(
            415, "unsupported_encoding", "Send the body as it is, without 'content-encoding'."
        )
    return None


def _length(call: HttpCall) -> int:
    """What the head says; 0 where it says nothing."""
    said = call.header("content-length") or ""
    return int(said) if said.isdecimal() and len(said) < 20 else 0
