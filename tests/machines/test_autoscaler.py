"""Ray's autoscaler beside the planner: a machine is added for workers that fit nowhere, and ended
when these have drained, not before."""

import secrets
import time

import pytest

from tests.deploy.planner_on_ray import HASTY, Load, Planned, pool
from tests.deploy.ray_machines import RayMachines
from tests.deploy.ray_operator import Operator
from tests.machines.loopback_up import loopback_ray
from tests.redis_server import redis_server

pytestmark = [pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(900)]

CPUS = 4  # of each machine: a router, a planner and two workers leave less than one
IDLE_MIN = 0.25  # of a machine on which nothing is set aside, until the autoscaler ends it


async def test_a_machine_comes_for_workers_and_goes_after_them() -> None:
    up = {"least": 0, "most": 1, "cpus": CPUS, "idle_timeout_minutes": IDLE_MIN}
    async with redis_server() as redis:
        with loopback_ray(**up) as ray:
            machines = RayMachines(
                address=ray.address,
                raylets=(),
                environment=ray.environment,
                folder=ray.directory,
                token=secrets.token_hex(4),
            )
            operator = Operator(machines=machines, store=redis.url, home=ray.laptop)
            pools = [
                {**pool("prompts", "prefill", 1, 2), "resources": {"cpus": 1}},
                {**pool("answers", "decode", 1, 2), "resources": {"cpus": 1}},
            ]
            file = operator.write(pools=pools, planner=HASTY)
            said = operator.up(file)
            planned, load = Planned(operator, file), Load(said["routers"][0])
            assert len(ray.raylets()) == 1
            began = time.monotonic()
            async with load.rising():
                await planned.until(lambda: planned.sizes() == (2, 2), "2+2 serve", 300)
                assert len(ray.raylets()) == 2
                print(f"a machine and two workers more after {time.monotonic() - began:.0f} s")
            began = time.monotonic()
            async with load.of(2, pause_s=0.5):
                await planned.until(lambda: planned.sizes() == (1, 1), "1+1 serve", 300)
                await planned.until(lambda: len(ray.raylets()) == 1, "the machine goes", 120)
                print(f"and gone after {time.monotonic() - began:.0f} s")
            await load.close()
            print(load.num_answers, "answers")
            assert (load.failed, load.wrong) == ([], [])
            assert operator.penstock("down").returncode == 0
