import asyncio

import pytest

from cluster.histogram import Histogram
from cluster.lateness import LATE_S, LOOK_S, AttentiveClock, Limit, Patience
from tests.virtual_loop import VirtualLoop, run


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Owner:
    """Somebody who looks as often as it should, unless it is away."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.attention = AttentiveClock(self.clock)

    def live(self, seconds: float) -> float:
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now = min(until, self.clock.now + LOOK_S)
            self.attention.now()
        return self.attention.now()

    def be_away(self, seconds: float) -> float:
        self.clock.now += seconds
        return self.attention.now()


def test_it_shows_the_true_time_as_long_as_its_owner_looks() -> None:
    owner = Owner()
    assert owner.live(1_000.0) == owner.clock.now
    assert owner.attention.absent_s == 0.0


def test_an_absence_counts_for_nothing() -> None:
    owner = Owner()
    before = owner.live(1.0)
    assert owner.be_away(8.0) == before
    assert owner.attention.absent_s == 8.0


def test_who_is_back_first_handles_what_has_arrived_and_then_time_runs_on() -> None:
    owner = Owner()
    before = owner.live(1.0)
    owner.be_away(8.0)
    assert owner.live(LOOK_S / 2) == before
    assert owner.live(LOOK_S / 2) == pytest.approx(before + LOOK_S)
    assert owner.live(5.0) == pytest.approx(before + LOOK_S + 5.0)


def test_who_asks_many_times_at_once_does_not_settle_sooner() -> None:
    owner = Owner()
    before = owner.live(1.0)
    owner.be_away(8.0)
    assert [owner.attention.now() for _ in range(10)] == [before] * 10


def test_it_never_runs_backwards() -> None:
    owner = Owner()
    shown = [
        step for gap in (0.1, 0.4, 3.0, 0.1, 0.1, 0.6, 0.6, 0.2) for step in [owner.be_away(gap)]
    ]
    assert shown == sorted(shown)


def test_one_that_is_starved_all_the_time_judges_at_last() -> None:
    owner = Owner()
    before = owner.attention.now()
    for _ in range(20):
        after = owner.be_away(2 * LATE_S)
    assert after - before >= 10 * LATE_S


def test_a_limit_counts_the_seconds_that_we_were_there() -> None:
    clock = Clock()
    limit = Limit(2.0, clock)
    clock.now += 0.25
    assert limit.pause_s() == LOOK_S
    clock.now += 60.0
    assert limit.pause_s() == LOOK_S, "what has arrived is handled first"
    came_back = clock.now
    with pytest.raises(TimeoutError):
        _wait_in_steps(limit, clock)
    assert clock.now - came_back == pytest.approx(1.75)


def _wait_in_steps(limit: Limit, clock: Clock) -> None:
    while True:
        clock.now += limit.pause_s()


def _loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def test_patience_ends_when_the_limit_is_over() -> None:
    async def wait() -> float:
        began = _loop().time()
        with pytest.raises(TimeoutError):
            async with Patience(3.0):
                await asyncio.Event().wait()
        return _loop().time() - began

    assert run(wait()) == pytest.approx(3.0)


def test_patience_without_a_limit_has_no_end() -> None:
    async def wait() -> bool:
        async with Patience(None):
            await asyncio.sleep(1e6)
        return True

    assert run(wait())


@pytest.mark.parametrize("stopped_s", [1.0, 2.0, 4.0, 8.0, 3600.0])
@pytest.mark.parametrize("before_s", [0.0, 1.3, 2.999])
def test_an_answer_that_came_during_an_absence_is_in_time(
    stopped_s: float, before_s: float
) -> None:
    """It is heard a few turns of the loop after the timers: threads are between it and us."""

    async def wait() -> str:
        answer: asyncio.Future[str] = _loop().create_future()

        def be_stopped() -> None:
            _loop().stand_still(stopped_s)
            _loop().call_later(0.05, answer.set_result, "here")

        _loop().call_later(before_s, be_stopped)
        async with Patience(3.0):
            return await answer

    assert run(wait()) == "here"


def test_who_says_nothing_after_an_absence_either_has_the_rest_of_the_limit() -> None:
    async def wait() -> float:
        _loop().call_later(1.0, _loop().stand_still, 8.0)
        with pytest.raises(TimeoutError):
            async with Patience(3.0):
                await asyncio.Event().wait()
        return _loop().time()

    assert run(wait()) == pytest.approx(8.0 + 3.0, abs=LOOK_S)


def test_what_is_cancelled_from_outside_is_not_called_late() -> None:
    async def wait() -> None:
        async with Patience(3.0):
            await asyncio.Event().wait()

    async def cancel() -> None:
        task = asyncio.create_task(wait())
        _loop().call_later(1.0, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    run(cancel())


def test_an_attention_that_is_kept_notices_by_itself() -> None:
    async def keep() -> float:
        attention = AttentiveClock(_loop().time)
        keeping = asyncio.create_task(attention.keep(Histogram((1.0,))))
        await asyncio.sleep(1.0)
        _loop().stand_still(5.0)
        await asyncio.sleep(1.0)
        keeping.cancel()
        return attention.absent_s

    assert run(keep()) == pytest.approx(5.0, abs=LOOK_S)
