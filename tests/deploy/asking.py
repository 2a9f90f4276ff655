"""Clients that ask a cluster again and again, each knowing all of its routers, in a process of
their own."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Clients:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def each_again(self) -> float:
        """Returns after how many seconds each had had an answer that it asked for since."""
        began = time.monotonic()
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self.heard() == "again"
        return time.monotonic() - began

    def became(self) -> dict[str, int]:
        """Of all that they asked, once they have stopped asking."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        found: dict[str, int] = json.loads(self.heard())
        return found

    def heard(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def asking(routers: Sequence[str]) -> Iterator[Clients]:
    """24 clients, half of which know the routers in the other order."""
    targets = [f"ipv4:{','.join(order)}" for order in (routers, routers[::-1])]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.machines.load", *targets],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            clients = Clients(process)
            assert clients.heard() == "running"
            yield clients
        finally:
            process.kill()
