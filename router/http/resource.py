"""The outermost line of a call over HTTP: whatever happens inside, it ends with a true answer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

from cluster.addresses import is_loopback
from cluster.blame import blamed, cut_off
from cluster.errors import PenstockError, Unauthenticated
from cluster.limits import Limits
from cluster.open_calls import OpenCalls
from router.callers.callers import HEADER, Callers
from router.front.validation import check_request_id
from router.http.bodies import pass_over
from router.http.call import REQUEST_ID_KEY, HttpCall, Receive, Scope, Send
from router.http.errors import HttpRefusal, failure_of

ServeHttp = Callable[[HttpCall], Awaitable[None]]

_TELL_S: Final = 2.0  # so long a caller has to read what went wrong


class Resource:
    """One path, as an ASGI application: who serves it, by method."""

    def __init__(
        self,
        methods: Mapping[str, ServeHttp],
        limits: Limits,
        open_calls: OpenCalls,
        callers: Callers,
        *,
        is_open: bool,
    ) -> None:
        """`is_open`: whoever comes is served, and nobody asked who he is."""
        self._methods = {**methods, **({"HEAD": methods["GET"]} if "GET" in methods else {})}
        self._limits = limits
        self._open_calls = open_calls
        self._callers = callers
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = HttpCall(scope, receive, send, self._limits)
        with self._open_calls:
            try:
                call.request_id = check_request_id(call.header(REQUEST_ID_KEY) or "", self._limits)
                if self._open_calls.is_cut_off:
                    raise cut_off(call)
                serve = self._find(call)
                call.set_deadline()
                async with asyncio.timeout(call.remaining_s):
                    if not self._is_open:
                        await self._identify(call)
                    await serve(call)
            except (asyncio.CancelledError, Exception) as error:
                if call.is_gone and isinstance(error, asyncio.CancelledError):
                    return  # nobody is left to tell
                await _tell(blamed(error, call, self._open_calls), call)

    async def _identify(self, call: HttpCall) -> None:
        try:
            call.key = self._callers.identify(call.all_headers(HEADER))
        except Unauthenticated:
            await pass_over(call)  # else who is still sending would not hear it
            raise

    def _find(self, call: HttpCall) -> ServeHttp:
        serve = self._methods.get(call.method)
        if serve is None:
            methods = sorted(self._methods)
            raise HttpRefusal(
                405,
                "method_not_allowed",
                f"Ask here by {' or '.join(methods)}.",
                (b"allow", ", ".join(methods).encode()),
            )
        if call.method == "POST" and not self._callers.are_asked:
            _check_origin(call.header("origin"))
        return serve


def _check_origin(origin: str | None) -> None:
    """Where nobody is asked who he is a page of another site, opened in a browser of this machine,
    may not ask at all. Browsers say where a page is from; other clients say nothing."""
    if origin is not None and not is_loopback(_host(origin)):
        raise HttpRefusal(
            403, "origin_not_allowed", "A web page may not ask here: ask from its server."
        )


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""


async def _tell(failure: PenstockError, call: HttpCall) -> None:
    """Ends a call with an error: as its answer, as the last frame of a stream, or by dropping the
    connection where neither could be told from an answer."""
    if call.is_gone or call.is_ended:
        return
    try:
        async with asyncio.timeout(_TELL_S):
            told = failure_of(failure, call.names)
            if not call.is_begun:
                await call.answer(told.status, told.body, *told.headers)
            elif call.is_stream:
                await call.end(call.failure_frame(told.error))
            else:
                call.abort()
    except TimeoutError:
        call.abort()


async def refuse_path(call: HttpCall) -> None:
    """Serves what is nowhere."""
    raise HttpRefusal(404, "not_found", "Nothing is at this path: '/openapi.json' says what is.")
