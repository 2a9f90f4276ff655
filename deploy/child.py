"""One local process: spawn, wait for its ready line, stop. Knows nothing of what it does."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from cluster.errors import StartupError
from cluster.lateness import Patience
from cluster.log import FILE_BYTES
from cluster.process import child_environment
from deploy.plan import ProcessPlan

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
NUM_TAIL_LINES = 20
SAID = "error: "
MAX_TAIL_BYTES = 1 << 16
MAX_LOG_BYTES = 2 * FILE_BYTES  # a process that dies before it rotates its log
LAST_WORDS_S = 1.0  # somebody whom a dead process started may hold its stdout open


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Whole or not at all: where there is no room, the one from before stays."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    fresh.replace(path)


def _open_log(path: Path) -> BinaryIO:
    """A process that cannot be logged is started all the same."""
    try:
        path.parent.mkdir(exist_ok=True)
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
        return path.open("ab")
    except OSError as error:
        logger.warning("what this process says is lost: %s", error)
        return open(os.devnull, "ab")


def _popen(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with _open_log(log) as stderr:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            start_new_session=True,
        )


def tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - MAX_TAIL_BYTES))
            lines = file.read(MAX_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-NUM_TAIL_LINES:])


def _sentences(last_words: str) -> str:
    """Says why a process ends, if it says so itself (`cluster.process.run`)."""
    said = takewhile(lambda line: line.startswith(SAID), reversed(last_words.splitlines()))
    return " ".join(line.removeprefix(SAID) for line in reversed(list(said)))


def _end_at_once(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


class Child:
    """A running process. Its output goes to its log; it is in a session of its own, so that a
    Ctrl-C at the terminal reaches the launcher alone, which drains in order."""

    def __init__(
        self,
        plan: ProcessPlan,
        process: subprocess.Popen[bytes],
        log: Path,
        stdout: asyncio.StreamReader,
        pidfd: int,
    ) -> None:
        self.plan = plan
        self.ready: Mapping[str, Any] = {}
        self.log = log
        self._process = process
        self._stdout = stdout
        self._words: asyncio.Task[None] | None = None
        self._pidfd = pidfd
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._on_exit)  # readable when all of it is dead

    @classmethod
    async def spawn(cls, plan: ProcessPlan, config: Path, log: Path) -> "Child":
        """Raises OSError where a step fails, and then nothing is left running."""
        _write_config(config, plan.config)
        with contextlib.ExitStack() as undo:
            environment = plan.environment or child_environment()
            process = _popen([*plan.command, "--config", str(config)], log, environment)
            undo.callback(_end_at_once, process)
            stdout = asyncio.StreamReader()
            pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(stdout), process.stdout
            )
            undo.callback(pipe.close)
            pidfd = os.pidfd_open(process.pid)
            undo.callback(os.close, pidfd)
            child = cls(plan, process, log, stdout, pidfd)
            undo.pop_all()
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
        return not self._ended.is_set()

    async def wait(self) -> int:
        """The exit code; minus a signal's number where that ended it."""
        await self._ended.wait()
        return int(self._process.returncode)

    async def until_ready(self) -> None:
        """Returns when it has said so. Raises StartupError where it ends before."""
        self.ready = await self._ready_line()
        self._words = asyncio.create_task(self._log_stdout())

    def kill(self) -> None:
        """SIGKILL: the only one that a stopped process obeys."""
        self._signal(signal.SIGKILL)

    async def stop(self, *, grace_s: float) -> bool:
        """SIGTERM, then SIGKILL; whether the first was enough."""
        if grace_s > 0:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with Patience(grace_s):
                    await self.wait()
        was_enough = not self.is_running
        self.kill()
        await self.wait()
        with contextlib.suppress(TimeoutError):
            async with Patience(LAST_WORDS_S):
                await (self._words or self._log_stdout())
        await asyncio.sleep(0)  # its pipe is closed by the loop's next turn, if there is one
        return was_enough

    async def stop_uninterrupted(self) -> None:
        """A cancelled start must not leave a process that nobody has waited for."""
        stopping = asyncio.create_task(self.stop(grace_s=0))
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            await stopping
            raise

    def failure(self, what: str) -> StartupError:
        """Says what went wrong with it: its own sentence where its last words are one."""
        last_words = tail(self.log) or "(it wrote nothing)"
        if sentences := _sentences(last_words):
            return StartupError(f"{self.name} did not start: {sentences} Its log is {self.log}.")
        return StartupError(f"{self.name} {what}. The end of {self.log}:\n{last_words}")

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.poll()
        self._ended.set()

    def _signal(self, number: signal.Signals) -> None:
        if self.is_running:
            self._process.send_signal(number)

    async def _ready_line(self) -> Mapping[str, Any]:
        while line := await self._line():
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict) and message.get("ready") is True:
                    return message
            self._write_log(line)
        code = await self.wait()
        raise self.failure(f"ended with code {code} before it was ready")

    async def _line(self) -> bytes:
        try:
            return await self._stdout.readline()
        except ValueError:  # it is longer than the buffer, which is empty now
            return b"\n"

    async def _log_stdout(self) -> None:
        while text := await self._stdout.read(MAX_TAIL_BYTES):
            self._write_log(text)

    def _write_log(self, text: bytes) -> None:
        with contextlib.suppress(OSError), self.log.open("ab") as log:
            log.write(text)  # where there is no room it is lost, and the process goes on
