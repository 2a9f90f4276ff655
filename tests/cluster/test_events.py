"""A watcher's view is the worker's cache, however much of the log it missed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.events import CacheUpdate, EventCursor, EventLog
from cluster.types import CacheChange, GrainHash, Incarnation

LIFE = Incarnation("life-1")


def grain(number: int) -> GrainHash:
    return GrainHash(number.to_bytes(16, "big"))


def stored(*numbers: int) -> CacheChange:
    return CacheChange(stored=tuple(map(grain, numbers)))


def evicted(*numbers: int) -> CacheChange:
    return CacheChange(evicted=tuple(map(grain, numbers)))


def test_changes_are_numbered_without_gaps_and_replayed_after_any_kept_number():
    log = EventLog(LIFE)
    changes = [stored(1, 2), evicted(1), stored(3)]
    for change in changes:
        log.append(change)
    log.check()
    assert log.number == 3
    assert [log.replay(after) for after in range(4)] == [changes, changes[1:], changes[2:], []]
    assert log.replay(0, limit=2) == changes[:2]
    assert log.replay(4) is None
    assert log.replay(-1) is None


def test_an_empty_change_is_none():
    log = EventLog(LIFE)
    log.append(CacheChange())
    assert log.number == 0


def test_what_has_left_the_ring_is_only_in_the_snapshot():
    log = EventLog(LIFE, capacity=2)
    for number in range(5):
        log.append(stored(number))
        log.check()
    log.append(evicted(0))
    assert log.replay(3) is None
    assert log.replay(4) == [stored(4), evicted(0)]
    number, grains = log.snapshot()
    assert number == 6
    assert set(grains) == {grain(n) for n in range(1, 5)}


def test_the_ring_is_bounded_in_grains_too():
    log = EventLog(LIFE, max_grains=10)
    for start in range(0, 40, 4):
        log.append(stored(*range(start, start + 4)))
        log.check()
    assert log.replay(7) is None
    assert len(log.replay(8) or ()) == 2
    assert log.num_grains == 40


def test_followers_are_woken_until_they_leave():
    log, woken = EventLog(LIFE), []

    def wake() -> None:
        woken.append(log.number)

    log.subscribe(wake)
    log.append(stored(1))
    log.unsubscribe(wake)
    log.append(stored(2))
    assert woken == [1]


def followed(*numbers: int) -> EventCursor:
    """A cursor that has a complete snapshot."""
    cursor = EventCursor()
    hashes = [grain(number) for number in numbers]
    assert cursor.snapshot_part(LIFE, 5, hashes, offset=0, is_last=True) == CacheUpdate(
        is_reset=True, changes=(CacheChange(stored=tuple(hashes)),) if hashes else ()
    )
    return cursor


def test_events_that_follow_are_applied_and_those_seen_already_are_not_again():
    cursor = followed(1)
    assert cursor.events(6, [stored(2), evicted(1)]) == CacheUpdate(changes=(stored(2), evicted(1)))
    assert cursor.number == 7
    assert cursor.events(6, [stored(2), evicted(1), stored(3)]) == CacheUpdate(changes=(stored(3),))
    assert cursor.events(1, [stored(9)]) == CacheUpdate()
    assert cursor.number == 8


def test_a_gap_is_noticed_and_what_was_followed_can_be_asked_for_again():
    cursor = followed()
    assert cursor.events(7, [stored(1)]) is None
    assert (cursor.incarnation, cursor.number) == (LIFE, 5)
    assert cursor.events(6, [stored(2)]) == CacheUpdate(changes=(stored(2),))


def test_events_before_any_snapshot_are_a_gap():
    assert EventCursor().events(1, [stored(1)]) is None


def test_a_snapshot_comes_in_parts_and_half_of_one_is_never_built_upon():
    cursor = followed(1)
    first = cursor.snapshot_part("life-2", 9, [grain(7)], offset=0, is_last=False)
    assert first == CacheUpdate(is_reset=True, changes=(stored(7),))
    assert cursor.incarnation == ""
    assert cursor.events(10, [stored(8)]) is None
    middle = cursor.snapshot_part("life-2", 9, [grain(8)], offset=1, is_last=False)
    assert middle == CacheUpdate(changes=(stored(8),))
    last = cursor.snapshot_part("life-2", 9, [], offset=2, is_last=True)
    assert last == CacheUpdate()
    assert (cursor.incarnation, cursor.number) == ("life-2", 9)


def test_a_part_that_is_missing_is_noticed_and_one_that_comes_twice_is_not_taken_twice():
    cursor = EventCursor()
    cursor.snapshot_part(LIFE, 9, [grain(1), grain(2)], offset=0, is_last=False)
    assert cursor.snapshot_part(LIFE, 9, [grain(4)], offset=3, is_last=True) is None
    middle = cursor.snapshot_part(LIFE, 9, [grain(3)], offset=2, is_last=False)
    again = cursor.snapshot_part(LIFE, 9, [grain(3)], offset=2, is_last=False)
    assert (middle, again) == (CacheUpdate(changes=(stored(3),)), CacheUpdate())
    assert cursor.snapshot_part(LIFE, 8, [grain(4)], offset=3, is_last=True) is None, "of another"
    assert not cursor.has_all(0)
    assert cursor.snapshot_part(LIFE, 9, [grain(4)], offset=3, is_last=True) is not None
    assert cursor.has_all(9)
    assert not cursor.has_all(10)


def test_a_part_without_its_first_is_a_gap():
    assert EventCursor().snapshot_part(LIFE, 1, [], offset=1, is_last=True) is None


@given(
    st.lists(
        st.one_of(
            st.sets(st.integers(0, 9), min_size=1),  # grains that come and go in one change
            st.sampled_from(["deliver", "lose"]),
        ),
        max_size=30,
    )
)
def test_whatever_is_lost_the_view_ends_up_as_the_cache(steps: list[set[int] | str]):
    log, cursor = EventLog(LIFE, capacity=3), EventCursor()
    held: set[GrainHash] = set()
    view: set[GrainHash] = set()

    def deliver() -> None:
        changes = log.replay(cursor.number) if cursor.incarnation == LIFE else None
        if changes is None:
            number, grains = log.snapshot()
            update = cursor.snapshot_part(LIFE, number, grains, offset=0, is_last=True)
        else:
            update = cursor.events(cursor.number + 1, changes)
        assert update is not None
        if update.is_reset:
            view.clear()
        for change in update.changes:
            view.difference_update(change.evicted)
            view.update(change.stored)

    for step in steps:
        if isinstance(step, set):
            toggled = {grain(number) for number in step}
            change = CacheChange(stored=tuple(toggled - held), evicted=tuple(toggled & held))
            held ^= toggled
            log.append(change)
            log.check()
        elif step == "deliver":
            deliver()
        elif cursor.events(cursor.number + 2, [stored(1)]) is not None:
            pytest.fail("a message was lost and not missed")
    deliver()
    assert view == held
