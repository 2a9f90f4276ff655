"""Has the weights of a model pulled by a process of its own, which ends with whoever waits.

Nothing is started where they are already.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

from cluster.errors import WeightsError
from cluster.process import LOG_VARIABLE, child_environment
from deploy.weights.manifest import describes, every, holds
from deploy.weights.origin import Weights, kept_in

_PULLER: Final = (sys.executable, "-P", "-m", "deploy.weights.puller")


async def pulled(
    weights: Weights,
    directory: str = "",
    *,
    say: Callable[[str], object],
    log: Path | None = None,
    is_described: bool = False,
) -> Path:
    """Returns where they are, here: in `directory`, or in this user's cache. `log`: to which its
    lines are added; `is_described`: only what says what the weights are. Raises WeightsError."""
    there = kept_in(weights, directory, is_described=is_described)
    if _is_there(there, weights, is_described):
        return there
    flags = ["--described"] if is_described else []
    process = await _start([weights.source, weights.digest, str(there), *flags], log)
    try:
        refused = ""
        assert process.stdout is not None, "it was asked for"
        async for line in process.stdout:
            told = _told(line)
            refused = told.get("refused", refused)
            if "said" in told:
                say(told["said"])
        code = await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
    if refused or code:
        where = f": its log is {log}" if log else ""
        raise WeightsError(refused or f"The process that pulls weights ended with {code}{where}.")
    return there


def _is_there(there: Path, weights: Weights, is_described: bool) -> bool:
    try:
        return holds(there, weights, describes if is_described else every)
    except OSError as error:
        raise WeightsError(f"{there} cannot be read: {error}.") from error


async def _start(arguments: list[str], log: Path | None) -> asyncio.subprocess.Process:
    with contextlib.ExitStack() as opened:
        stderr: BinaryIO | None = None
        environment = child_environment()
        if log:
            stderr = opened.enter_context(_opened(log))
        else:  # whoever listens is told the rest
            environment[LOG_VARIABLE] = "critical"
        try:
            return await asyncio.create_subprocess_exec(
                *_PULLER,
                *arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise WeightsError(f"The weights cannot be pulled: {error}.") from error


def _opened(log: Path) -> BinaryIO:
    try:
        return log.open("ab")
    except OSError:  # they are pulled all the same
        return open(os.devnull, "ab")


def _told(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        told = json.loads(line)
        if isinstance(told, dict):
            return told
    return {}
