"""One local process: spawn, wait for its ready line, stop. Knows nothing of what it does."""

import asyncio
import contextlib
import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import StartupError
from cluster.process import child_environment
from deploy.plan import ProcessPlan

ROOT = Path(__file__).resolve().parent.parent
NUM_TAIL_LINES = 20


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False))


async def _spawn(command: Sequence[str], log: Path) -> asyncio.subprocess.Process:
    with log.open("ab") as stderr:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=child_environment(),
            start_new_session=True,
        )


def tail(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join(lines[-NUM_TAIL_LINES:])


class Child:
    """A running process. Its output goes to its log; it is in a session of its own, so that a
    Ctrl-C at the terminal reaches the launcher alone, which drains in order."""

    def __init__(self, plan: ProcessPlan, process: asyncio.subprocess.Process, log: Path) -> None:
        self.plan = plan
        self.ready: Mapping[str, Any] = {}
        self.log = log
        self._process = process
        self._drain: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, plan: ProcessPlan, config: Path, log: Path, *, ready_timeout_s: float
    ) -> "Child":
        """Returns when the process says that it is ready; StartupError tells why it is not."""
        _write_config(config, plan.config)
        child = cls(plan, await _spawn([*plan.command, "--config", str(config)], log), log)
        try:
            async with asyncio.timeout(ready_timeout_s):
                child.ready = await child._ready_line()
        except TimeoutError:
            raise child._failure(f"was not ready within {ready_timeout_s:g} s") from None
        finally:
            if not child.ready:
                await child._stop_uninterrupted()
        child._drain = asyncio.create_task(child._log_stdout())
        return child

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def address(self) -> str:
        return str(self.ready.get("address", ""))

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        return await self._process.wait()

    def kill(self) -> None:
        """SIGKILL: the only one that a stopped process obeys."""
        self._signal(signal.SIGKILL)

    async def stop(self, *, grace_s: float) -> bool:
        """SIGTERM, then SIGKILL; whether the first was enough."""
        if grace_s > 0:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self.wait()
        was_enough = not self.is_running
        self.kill()
        await self.wait()
        await (self._drain or self._log_stdout())
        await asyncio.sleep(0)  # its pipes are closed by the loop's next turn, if there is one
        return was_enough

    async def _stop_uninterrupted(self) -> None:
        """A cancelled start must not leave a process that nobody has waited for."""
        stopping = asyncio.create_task(self.stop(grace_s=0))
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            await stopping
            raise

    def _signal(self, number: signal.Signals) -> None:
        if self.is_running:
            self._process.send_signal(number)

    async def _ready_line(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict) and message.get("ready") is True:
                    return message
            self._write_log(line)
        code = await self._process.wait()
        raise self._failure(f"ended with code {code} before it was ready")

    async def _log_stdout(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self._write_log(line)

    def _write_log(self, line: bytes) -> None:
        with self.log.open("ab") as log:
            log.write(line)

    def _failure(self, what: str) -> StartupError:
        last_words = tail(self.log) or "(it wrote nothing)"
        return StartupError(f"{self.name} {what}. The end of {self.log}:\n{last_words}")
