"""What becomes of what Ray placed when its head is away for longer than Ray waits for it, or loses
the Redis that holds what it knows: all ends in good order, without a word of anybody."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from penstock import Client, PenstockError
from tests.deploy.polling import is_alive, until
from tests.deploy.ray_operator import ANSWER, QUESTION, Operator, answer_at, left_of, operating
from tests.redis_server import RedisServer, redis_server

pytestmark = [pytest.mark.slow, pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(400)]

PATIENCE_S = 15.0  # of Ray's processes with their head: by default 60
PATIENCE = {"RAY_gcs_rpc_server_reconnect_timeout_s": f"{PATIENCE_S:g}"}
ONE_MACHINE = [{"num_cpus": 4}]
END_S = 120.0


@contextmanager
def own_redis() -> Iterator[RedisServer]:
    with asyncio.Runner() as runner:
        server = redis_server()
        try:
            yield runner.run(server.__aenter__())
        finally:
            runner.run(server.__aexit__(None, None, None))


def head_of(operator: Operator) -> psutil.Process:
    """Ray's own, which knows what is placed where."""
    folder = str(operator.machines.folder)
    [found] = [
        each
        for each in psutil.process_iter(["name", "cmdline"])
        if each.info["name"] == "gcs_server" and folder in " ".join(each.info["cmdline"] or ())
    ]
    return found


def all_end_in_good_order(operator: Operator, said: Mapping[str, Any], lost_at: float) -> None:
    """They serve for as long as Ray waits; then all drain and end, and nothing is left."""
    [router] = said["routers"]
    pids = [each["pid"] for each in said["processes"].values()]
    num_right, served_s = 0, END_S
    with Client(router, connect_timeout=0, reconnect_timeout=0) as client:
        while any(map(is_alive, pids)) and time.monotonic() - lost_at < END_S:
            try:
                answer = client.generate(messages=QUESTION).result().text
            except PenstockError:
                served_s = time.monotonic() - lost_at
                break
            assert answer == ANSWER
            num_right += 1
            time.sleep(0.1)
    assert num_right
    until(lambda: not any(map(is_alive, pids)), "all have ended", within_s=END_S)
    until(lambda: left_of(operator.called("lab")) == [], "nothing is left", within_s=END_S)
    print(
        f"{num_right} answers, for {served_s:.1f} s; all ended {time.monotonic() - lost_at:.1f} s"
    )


def test_what_ray_placed_ends_when_its_patience_with_the_head_is_exceeded(tmp_path: Path) -> None:
    with operating(tmp_path, ONE_MACHINE, **PATIENCE) as operator:
        said = operator.up(operator.write())
        lost_at = time.monotonic()
        head_of(operator).kill()
        all_end_in_good_order(operator, said, lost_at)
        ended = operator.penstock("status")
        assert ended.returncode == 4, ended.stdout


def test_a_head_that_loses_its_redis_is_as_one_that_is_gone(tmp_path: Path) -> None:
    with own_redis() as redis:
        own = {"RAY_REDIS_ADDRESS": redis.url.removeprefix("redis://").removesuffix("/0")}
        with operating(tmp_path, ONE_MACHINE, **PATIENCE, **own) as operator:
            said = operator.up(operator.write())
            head = head_of(operator)
            lost_at = time.monotonic()
            os.kill(redis.pid, signal.SIGKILL)
            until(lambda: not is_alive(head.pid), "Ray's head ends by itself", within_s=END_S)
            assert answer_at(said["routers"][0]) == ANSWER
            all_end_in_good_order(operator, said, lost_at)
