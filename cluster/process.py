"""Starts and ends a process: event loop, log, signals, the ready line, its parent's death.

The one door to uvloop, and the one file that reads environment variables:
`PENSTOCK_LOG` (a level, default info; the configuration's precedes it), `PENSTOCK_PARENT`
(the pid that this process must not outlive), and where a user's caches lie.
"""

import asyncio
import ctypes
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

from cluster import log
from cluster.errors import ConfigError, StartupError
from cluster.log import LogSettings

try:
    import uvloop
except ImportError:  # pragma: no cover - it is optional at run time
    uvloop = None

logger = logging.getLogger(__name__)

PARENT_VARIABLE = "PENSTOCK_PARENT"
LOG_VARIABLE = "PENSTOCK_LOG"
_PR_SET_PDEATHSIG = 1
_ROOT: Final = Path(__file__).resolve().parent.parent
# What a machine's owner says to all processes of it, and no launcher to one.
_OF_MACHINES: Final = frozenset({"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "PYTHONPATH"})
_OF_MACHINES_TOO: Final = (
    "LC_",
    "LD_LIBRARY_PATH",
    "XDG_",
    "UCX_",
    "NIXL_",
    "NCCL_",
    "FI_",
    "NVIDIA_",
    "OTEL_",  # whoever collects traces may want a header, or has a certificate of its own
    "PENSTOCK_",
)

Main = Callable[[asyncio.Event], Coroutine[Any, Any, None]]

# Told (role, address and more) once a process serves.
Ready = Callable[..., None]


def configure_logging(settings: LogSettings | None = None) -> None:
    """Sets up the log as a configuration says; before there is one to stderr, at the level of
    PENSTOCK_LOG."""
    level = os.environ.get(LOG_VARIABLE, "info")
    if settings is None:
        log.configure(level, "text", None)
    else:
        log.configure(
            settings.log_level or level,
            settings.log_format,
            settings.log_file,
            settings.log_file_bytes,
            levels=settings.log_levels,
        )


def print_ready(*, role: str, address: str, **more: Any) -> None:
    """The one line on stdout that says a process now serves, for whoever started it."""
    line = json.dumps({"ready": True, "role": role, "address": address, **more})
    print(line, flush=True)


def cache_folder() -> Path | None:
    """Names the folder where this user keeps what can be made again; None where there is no such
    place."""
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "penstock"
    home = os.environ.get("HOME")
    return Path(home) / ".cache" / "penstock" if home else None


def child_environment() -> dict[str, str]:
    """Makes the environment of a process that this one starts, and that must not outlive it."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        PARENT_VARIABLE: str(os.getpid()),
    }


def placed_environment(
    *, num_threads: int, gpus: Sequence[str], also: tuple[str, ...] = ()
) -> dict[str, str]:
    """Makes the environment of a child which has exactly so many threads and these GPUs, whatever
    the launcher of this process says of itself. `also`: beginnings of variables that it is given,
    too."""
    kept = {
        name: value
        for name, value in child_environment().items()
        if name in _OF_MACHINES or name.startswith((*_OF_MACHINES_TOO, *also))
    }
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(num_threads))
    return {**kept, **threads, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}


def run(main: Main) -> int:
    """Runs `main(drain)` to its end and returns the exit code.

    The first SIGTERM or SIGINT sets `drain`, the second ends the process at once. A
    `StartupError` is a sentence on stderr and exit code 2, anything else that is raised is
    logged and is 1.
    """
    try:
        configure_logging()
        follow_parent()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_draining_on_signals(main))
    except Exception as error:
        return _told(error)
    return 0


def _told(error: Exception) -> int:
    """Says why the process ends, and returns the exit code for it."""
    leaves = _leaves(error)
    if all(isinstance(leaf, StartupError) for leaf in leaves):
        for leaf in leaves:
            print(f"error: {leaf}", file=sys.stderr)
        return 2
    logger.critical("this process ends by an error that nothing handles", exc_info=error)
    return 1


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


async def _draining_on_signals(main: Main) -> None:
    drain = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, drain, number)
    await main(drain)


def _on_signal(drain: asyncio.Event, number: signal.Signals) -> None:
    if drain.is_set():
        # Everything outside survives this: peers see the connection go, the supervisor sweeps.
        print(f"a second {number.name}: ending at once", file=sys.stderr, flush=True)
        os._exit(128 + number)
    logger.info("%s: draining; once more ends at once", number.name)
    _end_with_parent(0)  # its end would be the second, and a drain has a bound of its own
    drain.set()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if uvloop is None:
        logger.warning("uvloop is not installed: running on asyncio's own loop, which is slower")
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def follow_parent() -> None:
    """Ends (drains) this process when the one named by PENSTOCK_PARENT dies.

    NOTE: Linux sends the signal when the *thread* that started this process ends, so a parent
    must start its children from a thread that lives as long as it does.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if not parent or sys.platform != "linux":
        return
    if not parent.isdecimal():
        raise ConfigError(f"{PARENT_VARIABLE} must be the pid of the parent, not '{parent}'.")
    _end_with_parent(signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before the line above
        raise StartupError(f"The parent process {parent} is gone: nothing would end this one.")


def _end_with_parent(number: int) -> None:
    """The kernel sends this signal then; 0: none."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise StartupError(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}.")
