"""`ray up` with the commands of deploy/ray/local.yaml, where no machine can be made."""

import time

import pytest

from tests.machines.loopback_up import loopback_ray

pytestmark = [pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(600)]


def test_three_come_up_and_go_down_without_ssh() -> None:
    with loopback_ray(least=2, most=2) as ray:
        status, began = "", time.monotonic()
        while not (" 1 head\n" in status and " 2 worker\n" in status):
            assert time.monotonic() - began < 150, status
            status = ray.run("ray", "status", "--address", ray.address, check=False)
        assert len(ray.raylets()) == 3
