"""A planner on a real Ray: pools grow under load, shrink again, go to nothing and come back, and no
request fails of it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.planner_on_ray import HASTY, Load, Planned, pool
from tests.deploy.ray_operator import UP, an_operator, left_of

pytestmark = [pytest.mark.slow, pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(900)]

MACHINES: list[dict[str, Any]] = [{"num_cpus": 4}, {"num_cpus": 4}]


async def test_one_and_one_become_two_and_two_and_one_and_one_again(tmp_path: Path) -> None:
    async with an_operator(tmp_path, MACHINES) as operator:
        pools = [pool("prompts", "prefill", 1, 2), pool("answers", "decode", 1, 2)]
        file = operator.write(pools=pools, planner=HASTY)
        said = operator.up(file)
        assert set(said["processes"]) == {"router-0", "prompts-0", "answers-0", "planner"}
        planned, load = Planned(operator, file), Load(said["routers"][0])
        async with load.rising():
            await planned.until(lambda: planned.sizes() == (2, 2), "2+2 serve", 240)
            grown = await asyncio.to_thread(operator.penstock, *UP, file)
            assert "Nothing is to be changed." in grown.stderr
        async with load.of(2, pause_s=0.5):
            await planned.until(lambda: planned.status()["now"] == "1+1", "1+1", 300)
            await planned.until(lambda: not planned.status()["leaving"], "all released", 60)
            assert planned.sizes() == (1, 1)
        await load.close()
        status = planned.status()
        print(load.num_answers, "answers;", *(each["text"] for each in status["past"]), sep="\n")
        assert load.num_answers > 50
        assert (load.failed, load.wrong) == ([], [])
        assert operator.penstock("down").returncode == 0
        assert left_of(operator.called("lab")) == []


async def test_to_nothing_and_back_for_a_request_that_waits(tmp_path: Path) -> None:
    async with an_operator(tmp_path, MACHINES) as operator:
        settings = {**HASTY, "window": "10s", "calm": "0s"}
        file = operator.write(pools=[pool("answers", "decode", 0, 1)], planner=settings)
        said = operator.up(file)
        assert set(said["processes"]) == {"router-0", "planner"}
        watched = operator.penstock("planner", "watch", "-f", file, "--once")
        assert "0+0 -> 0+0: Nothing came lately." in watched.stderr, watched.stderr
        planned, load = Planned(operator, file), Load(said["routers"][0])
        for _ in range(2):
            await load.ask(0)
            assert (load.failed, load.wrong) == ([], [])
            assert planned.sizes() == (0, 1)

            def is_cold() -> bool:
                status = planned.status()
                return status["now"] == "0+0" and not status["leaving"]

            await planned.until(is_cold, "nobody is there", 120)
        await load.close()
        assert load.num_answers == 2
        placed = [each["text"] for each in planned.status()["past"] if "placed" in each["text"]]
        assert len(placed) == 2
        assert operator.penstock("down").returncode == 0
        assert left_of(operator.called("lab")) == []
