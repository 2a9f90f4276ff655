"""A running `penstock serve --json`, as whoever typed it sees it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "penstock")


@dataclass
class Served:
    """A running `penstock serve --json`."""

    process: subprocess.Popen[str]
    home: Path
    ready: dict[str, Any]
    said: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.ready["address"])

    def penstock(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            input=text,
            env=environment_of(self.home),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def status(self) -> dict[str, dict[str, Any]]:
        workers = json.loads(self.penstock("status", "--json").stdout)["workers"]
        return {worker["member"]["worker"]["worker_id"]: worker for worker in workers}

    def pids(self) -> dict[str, int]:
        """By name, from what the launcher said last."""
        found = [line.split() for line in self.said if " is ready at " in line]
        return {words[0]: int(words[-1].rstrip(")")) for words in found}


def environment_of(home: Path) -> dict[str, str]:
    """Of a user who has nothing else: no cluster of this machine's is seen."""
    named = ("XDG_RUNTIME_DIR", "XDG_STATE_HOME")
    return {**os.environ, "HOME": str(home), **{name: str(home / name) for name in named}}


@contextmanager
def serving(home: Path, *flags: str, **environment: str) -> Iterator[Served]:
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--json", *flags],
        env={**environment_of(home), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    said: list[str] = []
    listener = threading.Thread(target=lambda: said.extend(process.stderr or ()))
    listener.start()
    try:
        line = process.stdout.readline()
        assert line, f"serve ended: {said}"
        yield Served(process, home, json.loads(line), said)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        listener.join()
        process.stdout.close()
        process.stderr.close()
