"""A Ray of several "machines" for a test, with its own token, that ends with the test."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PROCESS = Path(__file__).with_name("machines_process.py")
START_S = 120  # Ray's own 30 s are what a busy machine may take
NUM_TRIES = 3
END_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RayMachines:
    address: str
    raylets: tuple[int, ...]  # their pids, a machine each
    environment: Mapping[str, str]  # of who may come in
    folder: Path  # where Ray keeps its state and logs
    token: str


@contextmanager
def ray_machines(
    home: Path, machines: Sequence[Mapping[str, Any]], **settings: str
) -> Iterator[RayMachines]:
    """`machines`: what each has, as Ray names it; the first is the head. `settings`: variables of
    Ray's own."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # its sockets' paths must be short
    token = secrets.token_hex(16)
    (home / "ray-token").write_text(token)
    (folder / "ray").mkdir()  # it writes there which Ray was the last, and does not make it
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "ray-token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_raylet_start_wait_time_s": str(START_S),
        **settings,
    }
    try:
        with _started(folder, machines, environment) as said:
            yield RayMachines(
                address=said["address"],
                raylets=tuple(said["raylets"]),
                environment={**environment, "RAY_ADDRESS": said["address"]},
                folder=folder,
                token=token,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _started(
    folder: Path, machines: Sequence[Mapping[str, Any]], environment: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    for _ in range(NUM_TRIES):
        process = subprocess.Popen(
            [sys.executable, str(PROCESS), str(folder), json.dumps(list(machines))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "RAY_TMPDIR": str(folder)},
        )
        try:
            assert process.stdout is not None
            if line := process.stdout.readline():
                yield json.loads(line)
                return
        finally:
            errors = _end(process)
    raise RuntimeError(f"Ray did not start {NUM_TRIES} times: {errors[-2000:]}")


def _end(process: subprocess.Popen[str]) -> str:
    """All that it has started, by pid: 'ray stop' would end every Ray of the machine."""
    begun = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    try:
        _, errors = process.communicate("", timeout=END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
    for each in begun:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(begun, timeout=END_S)
    return errors
