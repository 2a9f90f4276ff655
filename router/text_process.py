"""The one process for large texts, as the router sees it: started when first needed, ended with
whatever it does when a call is given up, and started again for the next.

Owns its life and the frames; what it does is `router/text_child.py`.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from typing import Final

from cluster.errors import InvalidRequest, Overloaded
from cluster.process import child_environment
from router.lane import Lane
from router.text_child import HEADER, Kind, Settings

logger = logging.getLogger(__name__)

_BUFFER_BYTES: Final = 1 << 20
_MAX_WAITING_BYTES: Final = 64 << 20


class TextProcess:
    """Does one thing at a time; the others wait in a bounded lane."""

    def __init__(self, settings: Settings, *, max_waiting: int, largest_bytes: int) -> None:
        self._settings = settings
        self._lane = Lane(
            num_places=1,
            max_waiting=max_waiting,
            max_waiting_bytes=_MAX_WAITING_BYTES,
            largest_bytes=largest_bytes,
        )
        self._process: asyncio.subprocess.Process | None = None
        self._ending: set[asyncio.Task[int]] = set()

    @property
    def pid(self) -> int | None:
        """None: it does not run."""
        return None if self._process is None else self._process.pid

    def check_room(self, num_bytes: int) -> None:
        """Raises Overloaded where so much could not even wait."""
        self._lane.check_room(num_bytes)

    async def call(self, kind: Kind, num_bytes: int, encode: Callable[[], bytes]) -> bytes:
        """The answer to what `encode` gives when its turn has come. Cancelling ends the work at
        once, and the process with it."""
        await self._lane.enter(num_bytes)
        try:
            return await self._answer(kind, encode())
        finally:
            self._lane.leave()

    async def _answer(self, kind: Kind, data: bytes) -> bytes:
        try:
            process = self._process = self._process or await self._start()
            answer, body = await _exchange(process, kind, data)
        except (OSError, asyncio.IncompleteReadError) as error:
            self._end()
            logger.error("the process for large texts is lost: %r", error)
            raise Overloaded(
                "The process that tokenises large texts has ended: send the request again."
            ) from error
        except BaseException:
            self._end()  # half a frame is on its way
            raise
        if answer is Kind.REFUSED:
            raise InvalidRequest(*json.loads(body))
        return body

    async def close(self) -> None:
        self._end()
        if self._ending:
            await asyncio.wait(self._ending)

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "router.text_child", self._settings.to_json()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_BUFFER_BYTES,
            env=child_environment(),
        )

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        ending = asyncio.create_task(process.wait())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


async def _exchange(
    process: asyncio.subprocess.Process, kind: Kind, data: bytes
) -> tuple[Kind, bytes]:
    requests, answers = process.stdin, process.stdout
    assert requests is not None
    assert answers is not None
    requests.write(HEADER.pack(kind, len(data)))
    requests.write(data)
    await requests.drain()
    answer, num_bytes = HEADER.unpack(await answers.readexactly(HEADER.size))
    return Kind(answer), await answers.readexactly(num_bytes)
