"""How a process starts and ends, as whoever started it notices: lines, signals, exit codes."""

import asyncio
import json
import logging
import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import CheckpointError, ConfigError
from cluster.process import run

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # each starts an interpreter

SERVE = """
import asyncio, sys
from cluster.process import print_ready, run

async def main(drain):
    loop = type(asyncio.get_running_loop()).__module__
    print_ready(role="decode", address="127.0.0.1:1", loop=loop)
    await drain.wait()
    print("drained", flush=True)
    {after}

sys.exit(run(main))
"""
STUCK = SERVE.format(after="await asyncio.Event().wait()")
GOOD = SERVE.format(after="")

Start = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts Python with a script; what still runs at the end of the test is killed."""
    started: list[asyncio.subprocess.Process] = []

    async def start_script(script: str, **environment: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script),
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(process)
        return process

    async with asyncio.timeout(30):
        yield start_script
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def _log_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


async def ready(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    line: dict[str, Any] = json.loads(await process.stdout.readline())
    return line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_that_it_is_ready_then_drains_on_the_first_signal(
    start: Start, number: signal.Signals
):
    process = await start(GOOD)
    line = await ready(process)
    assert (line["ready"], line["role"], line["address"]) == (True, "decode", "127.0.0.1:1")
    assert line["loop"] == "uvloop"
    process.send_signal(number)
    out, _ = await process.communicate()
    assert out == b"drained\n"
    assert process.returncode == 0


async def test_the_second_signal_ends_it_at_once(start: Start):
    process = await start(STUCK)
    await ready(process)
    process.send_signal(signal.SIGTERM)
    assert await process.stdout.readline() == b"drained\n"
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert b"second SIGINT" in err


async def test_without_uvloop_it_runs_on_asyncio_and_says_so(start: Start):
    process = await start("import sys; sys.modules['uvloop'] = None\n" + GOOD)
    assert (await ready(process))["loop"].startswith("asyncio")
    process.terminate()
    _, err = await process.communicate()
    assert process.returncode == 0
    assert b"uvloop is not installed" in err


async def test_it_does_not_outlive_the_parent_that_started_it(start: Start):
    parent = await start(
        f"""
import os, subprocess, sys
os.environ["PENSTOCK_PARENT"] = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", {GOOD!r}])
child.wait()
"""
    )
    await ready(parent)
    parent.kill()
    # The child has inherited the pipe: it ends when the child has.
    assert await parent.stdout.read() == b"drained\n"


async def test_it_does_not_start_for_a_parent_that_is_gone(start: Start):
    process = await start(GOOD, PENSTOCK_PARENT="1")
    out, err = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert b"parent process 1 is gone" in err


async def test_the_log_has_one_line_a_record_whatever_it_says(start: Start):
    process = await start(
        """
import logging, sys
from cluster.process import run

async def main(drain):
    logging.getLogger("one").info("two\\nlines")
    logging.getLogger("debug").debug("unseen")
    try:
        raise ValueError("broken\\napart")
    except ValueError:
        logging.getLogger("trace").exception("failed")

sys.exit(run(main))
"""
    )
    out, err = await process.communicate()
    lines = err.decode().splitlines()
    assert (process.returncode, out, len(lines)) == (0, b"", 2)
    assert "INFO one two\\nlines" in lines[0]
    assert "ValueError: broken\\napart" in lines[1]


async def test_penstock_log_sets_the_level(start: Start):
    script = """
import logging, sys
from cluster.process import run

async def main(drain):
    logging.getLogger("x").debug("seen")

sys.exit(run(main))
"""
    process = await start(script, PENSTOCK_LOG="debug")
    _, err = await process.communicate()
    assert b"DEBUG x seen" in err


async def test_an_unknown_level_is_refused_with_the_known(start: Start):
    process = await start(GOOD, PENSTOCK_LOG="loud")
    _, err = await process.communicate()
    assert process.returncode == 2
    assert b"'loud' is no log level" in err


async def refused(drain: asyncio.Event) -> None:
    async def fail() -> None:
        raise CheckpointError("There is no config.json: give a checkpoint directory.")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fail())


async def broken(drain: asyncio.Event) -> None:
    raise KeyError("a bug")


@pytest.mark.usefixtures("_log_as_before")
def test_what_is_refused_at_start_is_a_sentence_and_no_traceback(capfd: pytest.CaptureFixture[str]):
    assert run(refused) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "error: There is no config.json: give a checkpoint directory.\n"


@pytest.mark.usefixtures("_log_as_before")
def test_a_bug_is_logged_with_its_traceback(capfd: pytest.CaptureFixture[str]):
    assert run(broken) == 1
    _, err = capfd.readouterr()
    assert "CRITICAL" in err
    assert "KeyError: 'a bug'" in err


@pytest.mark.usefixtures("_log_as_before")
def test_an_error_of_the_configuration_inside_main_is_refused_too(
    capfd: pytest.CaptureFixture[str],
):
    async def main(drain: asyncio.Event) -> None:
        raise ConfigError("Unknown key 'prot': did you mean 'port'?")

    assert run(main) == 2
    assert capfd.readouterr().err.startswith("error: Unknown key")


PARENT_OF_A_DRAINING_ONE = """
import os, subprocess, sys

child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1]], env={**os.environ, "PENSTOCK_PARENT": str(os.getpid())}
)
print(child.pid, flush=True)
child.wait()
"""
TAKES_ITS_TIME = """
import asyncio, sys
from cluster.process import run

async def main(drain):
    print("serving", flush=True)
    await drain.wait()
    print("draining", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print("drained", flush=True)

sys.exit(run(main))
"""


async def test_one_that_drains_goes_on_when_its_parent_dies():
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT_OF_A_DRAINING_ONE, TAKES_ITS_TIME),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert await parent.stdout.readline() == b"serving\n"
    os.kill(pid, signal.SIGTERM)
    assert await parent.stdout.readline() == b"draining\n"
    gone = os.pidfd_open(parent.pid)
    os.kill(parent.pid, signal.SIGKILL)
    select.select([gone], [], [])
    os.close(gone)
    parent.stdin.write(b"\n")
    assert await parent.stdout.read() == b"drained\n"
    await parent.wait()
