"""What processes cost, by what the kernel counts of each: time for which they wait, as on a busy
machine, is none of it."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


async def shares(pids: Mapping[str, int], seconds: float) -> dict[str, float]:
    """By name, the percentage of a core that each took meanwhile."""
    before, began = {name: _ran_s(pid) for name, pid in pids.items()}, time.monotonic()
    await asyncio.sleep(seconds)  # a quiet time is what is measured
    elapsed_s = time.monotonic() - began
    return {
        name: round(100 * (_ran_s(pid) - before[name]) / elapsed_s, 2) for name, pid in pids.items()
    }


def _ran_s(pid: int) -> float:
    """Of its threads; one that ends meanwhile takes its share with it. Raises FileNotFoundError
    where there is no such process: it costs nothing, but it is not what was to be looked at."""
    ran = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            ran += int((thread / "schedstat").read_text().split()[0])
    return ran / 1e9


QUIET_S = 60.0
MOST = 1.0  # percent of a core: of who starts and watches all of it, and of a worker
