"""The receiving process, as the measuring one sees it."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
ANSWER_S = 120.0


class FarEnd:
    """The receiving process; use as `async with`."""

    def __init__(self, **given: Any) -> None:
        self._given = given
        self._started: Process | None = None

    @property
    def _process(self) -> Process:
        assert self._started is not None, "use 'async with'"
        return self._started

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, command: str, **given: Any) -> dict[str, Any]:
        """Raises RuntimeError with what went wrong there."""
        return await self._say({"command": command, **given})

    async def __aenter__(self) -> Self:
        command = (sys.executable, "-m", "bench.kv_far_process")
        self._started = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, cwd=ROOT
        )
        await self._say(self._given)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._process.wait()
        except BaseException:
            self._process.kill()
            await self._process.wait()
            raise

    async def _say(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        async with asyncio.timeout(ANSWER_S):
            text = await self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(text) if text else {"error": "it ended"}
        if "error" in answer:
            raise RuntimeError(f"The receiving process failed: {answer['error']}")
        return answer
