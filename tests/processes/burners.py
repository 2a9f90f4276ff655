"""Processes that burn all processor cores beside a test, for a bounded time."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_BURN = "import time, sys\nend = time.monotonic() + float(sys.argv[1])\n" + (
    "while time.monotonic() < end:\n    for _ in range(100_000): pass\n"
)


@contextmanager
def burnt_cores(*, at_most_s: float = 240.0) -> Iterator[None]:
    """Keeps every core busy until the block ends; without it they end by themselves."""
    processes = [
        subprocess.Popen([sys.executable, "-c", _BURN, str(at_most_s)])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
