"""The planner's loop: one decides, under a lease; who goes drains first; a dry run does nothing."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.types import Role
from deploy.planner.config import PlannerConfig
from deploy.planner.process import tell_config
from deploy.planner.record import read_record
from tests.deploy.planned_cluster import HASTY, PlannedCluster, planned_pool

PREFILL, DECODE = Role.PREFILL, Role.DECODE


@pytest.fixture
def lab() -> PlannedCluster:
    """1+1 that may become 2+2."""
    pools = (planned_pool("prompts", PREFILL, 1, 2), planned_pool("answers", DECODE, 1, 2))
    cluster = PlannedCluster(pools)
    cluster.serve("prompts-0", "answers-0")
    return cluster


@pytest.fixture
def cold() -> PlannedCluster:
    """A pool that may be cold, and is."""
    return PlannedCluster((planned_pool("answers", DECODE, 0, 2),))


async def test_more_are_placed_under_load_and_who_goes_drains_before_it_is_released(
    lab: PlannedCluster,
) -> None:
    loop = lab.loop()
    lab.load(1.0)
    assert await lab.turn(loop) == ["place prompts-1 answers-1"]
    assert await lab.turn(loop) == []  # they start
    lab.serve("prompts-1", "answers-1")
    lab.busy(3, "prompts-0", "answers-0")
    lab.busy(1, "answers-1")
    lab.arrivals = []
    assert await lab.turn(loop) == ["drain prompts-1", "drain answers-1"]
    assert await lab.turn(loop) == ["release prompts-1"]
    assert await lab.turn(loop, num=3) == []  # something is in progress at the other
    lab.busy(0, "answers-1")
    assert await lab.turn(loop) == ["release answers-1"]
    assert lab.placed == {"prompts-0", "answers-0"}
    assert await lab.turn(loop, num=3) == []


async def test_who_drains_serves_again_where_it_is_wanted_after_all(lab: PlannedCluster) -> None:
    loop = lab.loop()
    lab.serve("prompts-1", "answers-1")
    lab.busy(1, "prompts-1", "answers-1")
    assert await lab.turn(loop) == ["drain prompts-0", "drain answers-0"]  # they are idle
    lab.busy(1, "prompts-0", "answers-0")
    lab.load(1.0)
    assert await lab.turn(loop) == ["undrain prompts-0", "undrain answers-0"]


async def test_one_of_two_is_active_and_the_other_takes_over(lab: PlannedCluster) -> None:
    first, second = lab.loop("a"), lab.loop("b")
    lab.serve("answers-1")
    await first.lease.take()
    assert await lab.turn(second) == []
    assert await lab.turn(first) == ["drain answers-1"]
    record = await read_record(lab.store)
    assert record is not None
    assert (record.holder, record.leaving) == ("a", ("answers-1",))
    assert await lab.turn(second) == []
    lab.now_s += 20.0  # the first one is gone
    assert await lab.turn(second) == ["release answers-1"]


async def test_without_the_lease_nothing_is_done(
    lab: PlannedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    loop = lab.loop()
    lab.load(1.0)
    lab.now_s += 5.0
    await loop.turn()
    assert (lab.told, lab.questions) == ([], [])
    assert "nothing is scaled" in caplog.text


async def test_a_lease_that_is_lost_on_the_way_stops_what_was_to_follow(
    lab: PlannedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    lab.serve("prompts-1", "answers-1")
    lab.takes_s = 60.0  # each step
    assert await lab.turn(lab.loop()) == ["drain prompts-1"]
    assert "the lease is lost: hands off" in caplog.text


async def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    lab: PlannedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    lab.load(1.0)
    active, dry = lab.loop(), lab.loop("dry", replace(HASTY, dry_run=True))
    assert await active.lease.take()  # it needs none
    assert await lab.turn(dry) == []
    assert "1+1 -> 2+2: 55 requests in 60 s: 1+1 would not have been enough." in caplog.text
    assert "it would do: prompts-1, answers-1 are placed" in caplog.text
    assert await read_record(lab.store) is None
    assert lab.placed == {"prompts-0", "answers-0"}


async def test_a_change_is_one_short_line_with_names_and_why(
    lab: PlannedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    loop = lab.loop()
    lab.load(1.0)
    await lab.turn(loop, num=3)
    lab.serve("prompts-1", "answers-1")
    lab.busy(1, "answers-1")
    lab.arrivals = []
    await lab.turn(loop, num=3)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "prompts-1, answers-1 are placed: 1+1 -> 2+2: 55 requests in 60 s: 1+1 would not have been"
        " enough. 2+2 wanted.",
        "2+2 -> 2+2: 50 requests in 60 s: 2+2 would not have been enough. They stay.",
        "prompts-1, answers-0 drain: 2+2 -> 1+1: Nothing came lately. 1+1 were enough for 0 s.",
        "prompts-1, answers-0 are released: 1+1 -> 1+1: Nothing came lately. They stay.",
    ]
    caplog.set_level(logging.DEBUG)
    lab.load(1.0)
    await lab.turn(loop)
    whole = [each.getMessage() for each in caplog.records if each.levelno == logging.DEBUG]
    assert [each for each in whole if "drain_s" in each]


def test_what_it_is_told_is_one_short_line(
    lab: PlannedCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = PlannerConfig(
        cluster="lab", secrets_file=tmp_path, store="redis://:word@a:1/0", pools=lab.pools
    )
    caplog.set_level(logging.DEBUG)
    tell_config(config)
    [short, whole] = caplog.records
    assert (short.levelno, whole.levelno) == (logging.INFO, logging.DEBUG)
    said = short.getMessage()
    assert said == (
        "plans for 'lab': prompts (prefill) 1 to 2, answers (decode) 1 to 2; a look every 5 s"
    )
    assert "drain_s" in whole.getMessage()
    assert "word" not in whole.getMessage()


async def test_the_last_decode_worker_goes_when_nothing_is_in_progress_and_comes_for_who_waits(
    cold: PlannedCluster,
) -> None:
    loop = cold.loop()
    cold.serve("answers-0")
    cold.busy(1, "answers-0")
    assert await cold.turn(loop, num=3) == []  # an answer goes on: nobody could go on with it
    assert cold.questions[-1].start_s == HASTY.start_s
    cold.busy(0, "answers-0")
    assert await cold.turn(loop, num=2) == [
        "drain answers-0 though it is the last",
        "release answers-0",
    ]
    assert await cold.turn(loop, num=3) == []
    cold.num_waiting = 1
    assert await cold.turn(loop) == ["place answers-0"]


async def test_a_request_that_comes_as_the_last_one_drains_has_it_back(
    cold: PlannedCluster,
) -> None:
    loop = cold.loop()
    cold.serve("answers-0")
    assert await cold.turn(loop) == ["drain answers-0 though it is the last"]
    cold.num_waiting = 1
    assert await cold.turn(loop) == ["undrain answers-0"]


async def test_requests_wait_for_nobody_where_the_pool_is_never_cold(lab: PlannedCluster) -> None:
    await lab.turn(lab.loop())
    assert lab.questions[-1].start_s == 0.0


async def test_who_somebody_else_drains_is_left_alone(lab: PlannedCluster) -> None:
    loop = lab.loop()
    lab.serve("prompts-1", "answers-1")
    lab.drains("answers-1")  # an operator
    lab.drains("prompts-1", ends=True)  # 'penstock up' replaces it
    assert await lab.turn(loop, num=3) == []


async def test_one_that_is_missing_is_placed(lab: PlannedCluster) -> None:
    lab.placed.discard("prompts-0")
    del lab.statuses["prompts-0"]
    assert await lab.turn(lab.loop()) == ["place prompts-0"]


async def test_what_does_not_start_is_withdrawn_first(lab: PlannedCluster) -> None:
    loop = lab.loop()
    lab.placed |= {"prompts-1", "answers-1"}  # they wait for a machine
    assert await lab.turn(loop) == ["release prompts-1 answers-1"]


async def test_what_cannot_be_done_is_said_and_tried_again(
    lab: PlannedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    loop = lab.loop()
    lab.load(1.0)
    lab.fits = False
    assert await lab.turn(loop, num=2) == []
    assert caplog.text.count("No machine has room for prompts-1, answers-1.") == 1
    record = await read_record(lab.store)
    assert record is not None
    assert record.trouble == "No machine has room for prompts-1, answers-1."
    lab.fits, lab.reaches_workers, lab.arrivals = True, False, []
    lab.serve("answers-1")
    assert await lab.turn(loop) == []
    lab.reaches_workers = True
    assert await lab.turn(loop) == ["drain answers-1"]


async def test_a_router_that_does_not_answer_is_not_taken_for_a_quiet_one(
    lab: PlannedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    lab.serve("prompts-1", "answers-1")
    lab.hears_routers = False
    loop = lab.loop()
    assert await lab.turn(loop, num=2) == []
    assert "nothing is decided: 'router-0' is not to be reached." in caplog.text
    lab.hears_routers = True
    assert await lab.turn(loop) == ["drain prompts-1", "drain answers-1"]


async def test_each_change_is_recorded_with_its_reason(lab: PlannedCluster) -> None:
    loop = lab.loop()
    lab.load(1.0)
    await lab.turn(loop)
    record = await read_record(lab.store)
    assert record is not None
    assert (record.now, record.wanted) == ("1+1", "2+2")
    [change] = record.past
    assert change.text.startswith("prompts-1, answers-1 are placed: 55 requests in 60 s: 1+1 would")
    assert record.terms["requests_s"] == pytest.approx(1.0, rel=0.1)
