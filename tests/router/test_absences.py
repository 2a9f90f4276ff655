"""Who is expected back, who is not, and how long it will take."""

import pytest

from cluster.types import Incarnation, LoadReport, Role, WorkerId
from router.absences import Absences
from router.pool import Pool
from tests.router.pool_samples import member

D0 = WorkerId("d0")


def life(number: int) -> Incarnation:
    return Incarnation(str(number))


def is_expected(absences: Absences, now: float) -> bool:
    return any(absences.expected(Role.DECODE, now))


def test_who_left_without_a_word_is_expected_for_a_while() -> None:
    absences = Absences(return_s=30.0)
    assert not is_expected(absences, 10.0)
    absences.left(D0, Role.DECODE, life(1), 10.0)
    assert not any(absences.expected(Role.PREFILL, 10.0))
    assert is_expected(absences, 39.9)
    assert not is_expected(absences, 40.0)
    absences.heard(D0, life(2), 41.0)
    assert absences.away(41.0) == []


def test_a_lost_connection_is_no_death() -> None:
    absences = Absences()
    for number in range(10):
        absences.left(D0, Role.DECODE, life(1), float(number))
        absences.heard(D0, life(1), number + 0.5)
    assert absences.num_deaths(D0, 10.0) == 0
    absences.left(D0, Role.DECODE, life(1), 10.0)
    assert is_expected(absences, 10.0)


def test_who_died_three_times_in_a_minute_is_not_waited_for() -> None:
    absences = Absences()
    for number in range(1, 4):
        absences.left(D0, Role.DECODE, life(number), 10.0 * number)
        assert is_expected(absences, 10.0 * number) == (number < 3)
        if number < 3:
            absences.heard(D0, life(number + 1), 10.0 * number + 2)
    assert absences.is_crash_looping(D0, 30.0)
    assert not absences.is_crash_looping(D0, 70.1), "its first death is a minute old"


def test_a_death_is_counted_once_however_often_it_is_told() -> None:
    absences = Absences()
    for told_at in (10.0, 10.5, 12.0):
        absences.left(D0, Role.DECODE, life(1), told_at)
    assert absences.num_deaths(D0, 12.0) == 1
    assert not is_expected(absences, 40.0), "as of when it was missed first"


def test_the_return_is_predicted_as_the_latest_ones() -> None:
    absences = Absences()
    absences.left(D0, Role.DECODE, life(1), 10.0)
    assert absences.return_in_s(Role.DECODE, 10.0) is None, "nobody came back yet"
    absences.heard(D0, life(2), 12.5)
    absences.left(D0, Role.DECODE, life(2), 100.0)
    assert absences.return_in_s(Role.DECODE, 101.0) == pytest.approx(1.5)
    assert absences.return_in_s(Role.DECODE, 105.0) == 0.0
    assert absences.return_in_s(Role.PREFILL, 101.0) is None


@pytest.mark.parametrize("how", ["draining", "goodbye"])
def test_who_leaves_as_it_was_told_to_is_not_expected(how: str) -> None:
    pool = Pool()
    pool.join(member("d0"))
    pool.report(D0, life(1), LoadReport(is_draining=how == "draining"), 10.0)
    if how == "goodbye":
        pool.goodbye(D0, life(1))
    pool.unreachable(D0, life(1), 10.1)
    pool.leave(D0, life(1))
    assert not pool.expects(Role.DECODE, (), 10.2)


def test_a_new_life_that_registers_first_ends_the_old_one() -> None:
    pool = Pool()
    pool.join(member("d0"))
    pool.report(D0, life(1), LoadReport(), 10.0)
    pool.join(member("d0", life="2"))
    assert pool.expects(Role.DECODE, (), 10.1)
    assert pool.absences.num_deaths(D0, 10.1) == 1
    pool.report(D0, life(2), LoadReport(), 11.0)
    assert not any(pool.absences.expected(Role.DECODE, 11.0))


def test_what_passes_by_itself_is_worth_waiting_for_and_a_drain_is_not() -> None:
    pool = Pool()
    pool.join(member("d0"))
    assert pool.expects(Role.DECODE, (), 10.0), "it is about to report"
    pool.report(D0, life(1), LoadReport(is_serving=False, step_age_s=3.0), 10.0)
    assert pool.expects(Role.DECODE, (), 10.0), "its step may end, or it is replaced"
    assert not pool.expects(Role.DECODE, {D0}, 10.0), "it has been tried"
    pool.report(D0, life(1), LoadReport(is_draining=True), 10.1)
    assert not pool.expects(Role.DECODE, (), 10.1)
