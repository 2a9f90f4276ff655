"""Every interleaving of two ends: loss, doubling, reordering, lapses, failed and lost writes,
deaths and restarts of either process, until nothing new can happen. In every world: no block is
reusable while a write may still reach it, nothing is used that was not written in its epoch, and
every reservation ends, at both ends.

The space is finite, so no depth is cut off: what is printed is how far it goes.
"""

from collections.abc import Iterator

import pytest

from kv_transfer import transfer
from kv_transfer.transfer import Event, State
from tests.kv_transfer.protocol_model import (
    Bounds,
    Rule,
    World,
    check,
    check_ends,
    check_step,
    moved,
    steps,
)

# By bounds: how many worlds there are, and after how many events the last is reached.
SHORT = {
    Bounds(num_writes=1): (25_646, 20),
    Bounds(num_lives=1): (6_156, 24),
}
LONG = {
    Bounds(revokes=False): (31_760, 26),
    Bounds(): (88_020, 26),
    Bounds(num_writes=3): (236_477, 32),
    Bounds(num_writes=1, num_lives=3): (149_856, 22),
    Bounds(num_epochs=3, num_writes=1): (906_521, 29),
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    moved.cache_clear()
    check_ends.cache_clear()


def explore(bounds: Bounds) -> tuple[set[World], int]:
    """All worlds, and the depth of the deepest."""
    seen = {World()}
    level, depth = list(seen), 0
    while level:
        found = []
        for world in level:
            for following in steps(world, bounds):
                check_step(world, following)
                if following not in seen:
                    seen.add(following)
                    found.append(following)
                    check(following, bounds)
                    for one in following.lent:
                        check_ends(one, bounds, is_alive=one.writer_life == following.writer_life)
        level, depth = found, depth + bool(found)
    pairs = {(one.writer, one.receiver) for world in seen for one in world.lent}
    assert (State.WRITTEN, State.VERIFIED) in pairs, "no hand-over ever succeeds"
    return seen, depth


def explore_and_say(bounds: Bounds) -> tuple[int, int]:
    worlds, depth = explore(bounds)
    print(f"{bounds}: {len(worlds):,} worlds, the deepest after {depth} events")
    return len(worlds), depth


@pytest.mark.slow
@pytest.mark.parametrize("bounds", SHORT, ids=lambda bounds: "-".join(map(str, bounds[:4])))
def test_no_interleaving_reuses_a_block_early_or_uses_an_unwritten_one(bounds: Bounds) -> None:
    assert explore_and_say(bounds) == SHORT[bounds]


@pytest.mark.prove
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bounds", LONG, ids=lambda bounds: "-".join(map(str, bounds[:4])))
def test_no_longer_one_does_either(bounds: Bounds) -> None:
    assert explore_and_say(bounds) == LONG[bounds]


@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.name.lower())
def test_the_exploration_finds_what_a_broken_rule_does(rule: Rule) -> None:
    with pytest.raises(AssertionError):
        explore(Bounds(num_writes=1, broken=rule))


@pytest.mark.parametrize(
    ("state", "event", "wrong"),
    [
        (State.GRANTED, Event.STOP, State.CLOSED),  # a lapse frees
        (State.ABANDONED, Event.STOP, State.CLOSED),  # a second one frees
        (State.GRANTED, Event.STOP, State.WRITTEN),  # what was stopped is used
        (State.GRANTED, Event.PEER_DIED, State.VERIFIED),
        (State.ABANDONED, Event.WRITTEN, State.VERIFIED),  # what is late is used
        (State.CLOSED, Event.WRITTEN, State.VERIFIED),
        (State.WRITTEN, Event.REJECT, State.VERIFIED),  # what is wrong is used
        (State.WRITTEN, Event.VERIFY, State.CLOSED),  # what is right is not
        (State.VERIFIED, Event.PEER_DIED, State.CLOSED),  # what is in use is freed
        (State.WRITING, Event.STOP, State.ABANDONED),  # closed with a write in flight
        (State.STOPPING, Event.STOP, State.ABANDONED),
        (State.WRITING, Event.PEER_DIED, State.CLOSED),
        (State.WRITING, Event.LANDED, State.WRITTEN),  # said to be written half-way
        (State.STOPPING, Event.LANDED, State.GRANTED),  # the stop is forgotten
        (State.STOPPING, Event.GRANT, State.WRITING),  # a late grant reopens
        (State.CLOSED, Event.GRANT, State.GRANTED),
        (State.ABANDONED, Event.CLOSE, State.ABANDONED),  # the writer's word is not heard
        (State.ABANDONED, Event.PEER_DIED, State.ABANDONED),  # nor its death
        (State.ABANDONED, Event.REVOKED, State.ABANDONED),  # nor the revocation
    ],
)
def test_the_exploration_finds_what_a_wrong_table_does(
    monkeypatch: pytest.MonkeyPatch, state: State, event: Event, wrong: State
) -> None:
    monkeypatch.setitem(transfer.TABLE, (state, event), wrong)
    with pytest.raises((AssertionError, transfer.LocalProtocolError)):
        explore(Bounds(num_lives=2 if event is Event.PEER_DIED else 1))
