"""The machine of one hand-over, event by event."""

import itertools

import pytest

from kv_transfer.transfer import (
    TABLE,
    WRITER_EVENTS,
    End,
    Event,
    LocalProtocolError,
    RemoteProtocolError,
    State,
    Transfer,
)


def machine_at(end: End, state: State) -> Transfer:
    machine = Transfer(end)
    machine.state = state
    return machine


@pytest.mark.parametrize("end", End)
def test_every_event_moves_along_the_table_or_is_refused_by_name(end: End) -> None:
    for state, event in itertools.product(State, Event):
        machine = machine_at(end, state)
        if (state, event) in TABLE:
            assert machine.apply(event) is TABLE[state, event]
            continue
        is_ours = (event in WRITER_EVENTS) == (end is End.WRITER)
        with pytest.raises(LocalProtocolError if is_ours else RemoteProtocolError, match=event):
            machine.apply(event)


def test_anything_may_be_stopped_and_anyone_may_die() -> None:
    for state in State:
        assert (state, Event.STOP) in TABLE
        assert (state, Event.PEER_DIED) in TABLE


def test_what_is_over_stays_over() -> None:
    over = {State.WRITTEN, State.VERIFIED, State.CLOSED}
    assert all(after in over for (before, _), after in TABLE.items() if before in over)


def test_a_peer_that_breaks_the_protocol_is_stopped_but_frees_nothing() -> None:
    writer = machine_at(End.WRITER, State.WRITING)
    with pytest.raises(RemoteProtocolError):
        writer.apply(Event.VERIFY)
    assert writer.state is State.STOPPING
    receiver = machine_at(End.RECEIVER, State.GRANTED)
    with pytest.raises(RemoteProtocolError):
        receiver.apply(Event.LANDED)
    assert receiver.state is State.ABANDONED


def test_only_the_last_write_in_flight_ends_the_writing() -> None:
    writer = Transfer(End.WRITER)
    writer.grant(lease_s=2.0, now=0.0)
    writer.begin_write()
    writer.begin_write()
    writer.end_write()
    assert writer.state is State.WRITING
    writer.end_write()
    assert writer.state is State.GRANTED
    with pytest.raises(LocalProtocolError):
        writer.end_write()
    writer.apply(Event.STOP)
    with pytest.raises(LocalProtocolError):
        writer.begin_write()


def test_a_lease_is_renewed_until_it_lapses_and_never_after() -> None:
    receiver = Transfer(End.RECEIVER)
    receiver.grant(lease_s=2.0, now=10.0)
    receiver.renew(11.5)
    assert not receiver.is_lapsed(13.4)
    assert receiver.is_lapsed(13.5)
    receiver.renew(13.5)
    assert receiver.is_lapsed(13.5)
    receiver.apply(Event.STOP)
    assert not receiver.is_lapsed(99.0), "a stopped one has nothing left to lapse"
    receiver.grant(lease_s=2.0, now=99.0)
    assert receiver.state is State.ABANDONED
