"""The one process for large texts, as the router sees it: started when first needed, ended with
whatever it does when a call is given up, and started again for the next.

Owns its life and the frames; what it does is `router/front/text_child.py`. A thread talks to it, so
that the event loop neither copies a large text nor starts a process.
"""

import asyncio
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO

from cluster.errors import InvalidRequest, Overloaded, UnsupportedFeature
from cluster.process import child_environment
from router.front.text_child import HEADER, Settings, TextKind
from router.front.text_threads import TextThreads

logger = logging.getLogger(__name__)


class TextProcess:
    """Does one thing at a time; the others wait."""

    def __init__(self, settings: Settings, *, max_waiting: int, largest_bytes: int) -> None:
        self._settings = settings
        # It lives as long as we do: with it Linux would end the process that it started.
        self._thread = TextThreads(
            num_threads=1, max_waiting=max_waiting, largest_bytes=largest_bytes
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """None: it does not run."""
        return None if self._process is None else self._process.pid

    def check_room(self, num_bytes: int) -> None:
        """Raises Overloaded where so much could not even wait."""
        self._thread.check_room(num_bytes)

    async def call(self, kind: TextKind, num_bytes: int, encode: Callable[[], bytes]) -> bytes:
        """The answer to what `encode` gives when its turn has come. Cancelling ends the work at
        once, and the process with it."""
        call = _Call(kind, encode)
        try:
            return await self._thread.run(num_bytes, self._answer, call)
        except asyncio.CancelledError:
            call.give_up()
            raise

    async def close(self) -> None:
        self._thread.close()
        if (process := self._process) is not None:
            process.kill()
            await asyncio.to_thread(self._reap, process)

    # In the thread

    def _answer(self, call: "_Call") -> bytes:
        process = None
        try:
            process = self._process = self._process or self._start()
            answer, body = call.exchange(process)
        except (OSError, EOFError) as error:
            if not call.is_given_up:
                logger.error("the process for large texts is lost: %r", error)
            if process is not None:
                self._reap(process)
            raise Overloaded(
                "The process that tokenises large texts has ended: send the request again."
            ) from error
        if answer is TextKind.REFUSED:
            raise InvalidRequest(*json.loads(body))
        if answer is TextKind.UNSUPPORTED:
            raise UnsupportedFeature(*json.loads(body))
        return body

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "router.front.text_child", self._settings.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=child_environment(),
        )

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        if self._process is process:
            self._process = None


class _Call:
    """One exchange of frames, which another thread may end."""

    def __init__(self, kind: TextKind, encode: Callable[[], bytes]) -> None:
        self._kind = kind
        self._encode = encode
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.is_given_up = False

    def exchange(self, process: subprocess.Popen[bytes]) -> tuple[TextKind, bytes]:
        with self._lock:
            if self.is_given_up:
                raise EOFError
            self._process = process
        try:
            return self._exchange(process)
        finally:
            with self._lock:
                self._process = None  # what comes now is another's

    def give_up(self) -> None:
        with self._lock:
            self.is_given_up = True
            if self._process is not None:
                self._process.kill()

    def _exchange(self, process: subprocess.Popen[bytes]) -> tuple[TextKind, bytes]:
        requests, answers = process.stdin, process.stdout
        assert requests is not None
        assert answers is not None
        data = self._encode()
        _write(requests, HEADER.pack(self._kind, len(data)))
        _write(requests, data)
        answer, num_bytes = HEADER.unpack(_read(answers, HEADER.size))
        return TextKind(answer), _read(answers, num_bytes)


def _write(pipe: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[pipe.write(left) :]


def _read(pipe: IO[bytes], num_bytes: int) -> bytes:
    data = bytearray(num_bytes)
    left = memoryview(data)
    while left:
        num_read = pipe.readinto(left)  # type: ignore[attr-defined]  # it is unbuffered
        if not num_read:
            raise EOFError("It has ended in the middle of an answer.")
        left = left[num_read:]
    return bytes(data)
