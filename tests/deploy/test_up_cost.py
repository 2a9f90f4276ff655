"""What placing by Ray adds to a start: `penstock up` beside `penstock serve` of the same file, in
turns."""

import json
import statistics
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.deploy.ray_machines import ray_machines
from tests.deploy.ray_operator import COMMAND, MACHINES, UP, Operator
from tests.redis_server import redis_server

pytestmark = [pytest.mark.slow, pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(600)]

NUM_ROUNDS = 3
MOST_ADDED_S = 10.0  # to the time of serve and that of Ray's own start


async def test_up_takes_the_time_of_serve_and_of_ray_and_little_more(tmp_path: Path) -> None:
    async with redis_server() as redis:
        rounds = []
        for number in range(NUM_ROUNDS):
            home = tmp_path / str(number)
            home.mkdir()
            began = time.monotonic()
            with ray_machines(home, MACHINES) as machines:
                ray_s = time.monotonic() - began
                operator = Operator(machines=machines, store=redis.url, home=home)
                file = operator.write()
                serve_s = seconds_to_serve(operator, file)
                up_s, memory = seconds_to_be_up(operator, file)
                rounds.append((serve_s, ray_s, up_s, up_s - serve_s - ray_s))
                print(
                    f"serve {serve_s:.1f} s, Ray's start {ray_s:.1f} s, up {up_s:.1f} s; {memory}"
                )
        added_s = statistics.median(added for *_, added in rounds)
        print(f"added, beyond serve and Ray: {added_s:.1f} s (median of {NUM_ROUNDS})")
        assert added_s < MOST_ADDED_S, rounds


def seconds_to_serve(operator: Operator, file: Path) -> float:
    began = time.monotonic()
    command = [*COMMAND, "serve", "--json", "-f", str(file)]
    with subprocess.Popen(
        command,
        env=dict(operator.machines.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as serving:
        try:
            assert serving.stdout is not None
            assert json.loads(serving.stdout.readline())["address"]
            return time.monotonic() - began
        finally:
            serving.terminate()


def seconds_to_be_up(operator: Operator, file: Path) -> tuple[float, str]:
    """And what memory the processes have to themselves, in words."""
    began = time.monotonic()
    ended = operator.penstock(*UP, file)
    seconds = time.monotonic() - began
    assert ended.returncode == 0, ended.stderr
    pids = {name: each["pid"] for name, each in json.loads(ended.stdout)["processes"].items()}
    found = {}
    for name, pid in pids.items():
        process = psutil.Process(pid)
        found[name] = process.memory_full_info().uss
        found[f"{name}'s actor"] = process.parents()[0].memory_full_info().uss
    assert operator.penstock("down").returncode == 0
    return seconds, ", ".join(f"{name} {size >> 20} MiB" for name, size in found.items())
