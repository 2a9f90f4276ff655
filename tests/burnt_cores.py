"""Both cores burnt beside a test: as many busy processes, which end with it, or by themselves."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NUM_CORES = 2
_BUSY = """
import sys, time
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    pass
"""


@contextmanager
def burnt_cores(
    at_most_s: float, *, num_per_core: int = 1, own_sessions: bool = False
) -> Iterator[None]:
    """In sessions of their own they leave others less: Linux shares processors among sessions."""
    command = (sys.executable, "-I", "-c", _BUSY, str(at_most_s))
    busy = [
        subprocess.Popen(command, start_new_session=own_sessions)
        for _ in range(num_per_core * NUM_CORES)
    ]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()
