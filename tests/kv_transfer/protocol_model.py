"""The two ends of hand-overs as a finite world, and everything that can happen to it next.

One block is lent in several epochs, one after the other, by a receiver to a writer; either
process may die and start again, and a receiver's new life counts its epochs anew. What was once
sent may arrive at any later moment, any number of times, or never: so a message in `sent` is
never taken out. Time is nothing: a lease may lapse at any moment at either end, so a writer that
is frozen and wakes after its lease is one that takes its next step after its receiver's lapse.
"""

from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from typing import NamedTuple

from kv_transfer.transfer import End, Event, State, Transfer

NOBODY = -1


class Rule(StrEnum):
    """What the world around the table promises. A mutant breaks one."""

    CONTENT_IS_CHECKED = "content is checked"
    WRITE_NAMES_RECEIVER = "a write reaches no later life of its receiver"
    MESSAGE_NAMES_EPOCH = "a message is taken for no other epoch"
    MESSAGE_NAMES_RECEIVER = "a message is taken by no later life of its receiver"
    FENCE_NAMES_WRITER = "a later life of the writer does not close for an earlier one"
    DEATH_IS_CERTAIN = "a silent or frozen process is not taken for a dead one"
    DEATH_IS_THE_LAST = "a process is dead only when nothing of it is under way"
    REVOKED_IS_CERTAIN = "an epoch is not revoked while a write of it lands"


class Bounds(NamedTuple):
    num_epochs: int = 2
    num_writes: int = 2  # of a complete hand-over
    num_lives: int = 2  # of each process
    revokes: bool = True  # the transport can
    broken: Rule | None = None


class Lent(NamedTuple):
    """The block in one epoch, as both ends see it."""

    number: int  # the epoch's, in its receiver's life
    receiver_life: int
    writer_life: int
    receiver: State = State.GRANTED
    writer: State = State.OPEN
    num_queued: int = 0  # writes handed to the transport that have not begun
    is_moving: bool = False  # one has begun: its bytes may land at any moment until it ends
    num_landed: int = 0  # as the transport told the writer
    is_revoked: bool = False  # no write begins any more
    sent: frozenset[Event] = frozenset({Event.GRANT})

    @property
    def is_free(self) -> bool:
        """The receiver may use the block for something else, or uses what was written."""
        return self.receiver in (State.CLOSED, State.VERIFIED)

    @property
    def num_in_flight(self) -> int:
        return self.num_queued + self.is_moving


class World(NamedTuple):
    lent: tuple[Lent, ...] = ()
    receiver_life: int = 0
    writer_life: int = 0
    content: tuple[int, int] = (NOBODY, 0)  # of the block: who wrote last, and how many writes

    def having(self, index: int, one: Lent) -> "World":
        return self._replace(lent=(*self.lent[:index], one, *self.lent[index + 1 :]))


@cache
def moved(end: End, state: State, event: Event, num_in_flight: int = 0) -> tuple[State, int]:
    """One step of the real machine: where it is then, with how many writes in flight.

    Cleared by whoever changes the table. Raises what the machine raises.
    """
    machine = Transfer(end)
    machine.state, machine._num_in_flight = state, num_in_flight
    match event:
        case Event.WRITE:
            machine.begin_write()
        case Event.LANDED:
            machine.end_write()
        case _:
            machine.apply(event)
    return machine.state, machine._num_in_flight


def steps(world: World, bounds: Bounds) -> Iterator[World]:
    if (one := next_epoch(world, bounds)) is not None:
        yield world._replace(lent=(*world.lent, one))
    for index, one in enumerate(world.lent):
        if one.receiver_life == world.receiver_life:
            for following in receiver_steps(world, index, bounds):
                yield world.having(index, following)
        if one.writer_life == world.writer_life:
            for following in writer_steps(world, index, bounds):
                yield world.having(index, settled(following, bounds))
        if one.is_moving:
            yield from ends_of_write(world, index, bounds)
    yield from deaths(world, bounds)


def next_epoch(world: World, bounds: Bounds) -> Lent | None:
    here = [one for one in world.lent if one.receiver_life == world.receiver_life]
    if len(world.lent) == bounds.num_epochs or not all(one.is_free for one in here):
        return None
    return Lent(len(here), world.receiver_life, world.writer_life)


def deaths(world: World, bounds: Bounds) -> Iterator[World]:
    """What a dead writer has begun is still under way; what it queued dies with it."""
    if world.writer_life + 1 < bounds.num_lives:
        lent = tuple(one._replace(num_queued=0, writer=State.CLOSED) for one in world.lent)
        yield world._replace(lent=lent, writer_life=world.writer_life + 1)
    if world.receiver_life + 1 < bounds.num_lives:
        life = world.receiver_life + 1
        yield world._replace(receiver_life=life, content=(NOBODY, 0))  # another pool


# -- the receiver ------------------------------------------------------------------------------


def receiver_steps(world: World, index: int, bounds: Bounds) -> Iterator[Lent]:
    one = world.lent[index]
    if one.receiver in (State.GRANTED, State.ABANDONED):
        # Lapse, cancel and fence are the same: stop waiting, tell the writer, again and again.
        yield received(one, Event.STOP)._replace(sent=one.sent | {Event.STOP})
    if one.receiver is State.ABANDONED and bounds.revokes:
        yield revoked(one, bounds)
    if one.receiver is State.WRITTEN:
        is_right = world.content == (index, bounds.num_writes)
        is_refused = bounds.broken is not Rule.CONTENT_IS_CHECKED and not is_right
        yield received(one, Event.REJECT if is_refused else Event.VERIFY)
        yield received(one, Event.STOP)
    for event in heard(world, one, bounds):
        yield received(one, event)
    if is_seen_dead(world, one, bounds):
        yield received(one, Event.PEER_DIED)


def received(one: Lent, event: Event) -> Lent:
    return one._replace(receiver=moved(End.RECEIVER, one.receiver, event)[0])


def revoked(one: Lent, bounds: Bounds) -> Lent:
    """No write begins from now on; only when none is moving is it certain that none lands."""
    is_certain = not one.is_moving or bounds.broken is Rule.REVOKED_IS_CERTAIN
    following = received(one, Event.REVOKED) if is_certain else one
    return following._replace(is_revoked=True)


def heard(world: World, one: Lent, bounds: Bounds) -> set[Event]:
    """What the writer said, now or long ago, and this epoch of the receiver takes for its own."""
    events: set[Event] = set()
    for other in world.lent:
        is_same_life = other.receiver_life == one.receiver_life
        is_same_epoch = other.number == one.number
        if (is_same_life or bounds.broken is Rule.MESSAGE_NAMES_RECEIVER) and (
            is_same_epoch or bounds.broken is Rule.MESSAGE_NAMES_EPOCH
        ):
            events |= other.sent & {Event.WRITTEN, Event.CLOSE}
    if bounds.broken is Rule.FENCE_NAMES_WRITER and one.writer_life < world.writer_life:
        events.add(Event.CLOSE)
    return events


def is_seen_dead(world: World, one: Lent, bounds: Bounds) -> bool:
    is_dead = one.writer_life < world.writer_life or bounds.broken is Rule.DEATH_IS_CERTAIN
    is_quiet = not one.is_moving or bounds.broken in (
        Rule.DEATH_IS_CERTAIN,
        Rule.DEATH_IS_THE_LAST,
    )
    return is_dead and is_quiet


# -- the writer --------------------------------------------------------------------------------


def writer_steps(world: World, index: int, bounds: Bounds) -> Iterator[Lent]:
    one = world.lent[index]
    for event in one.sent & {Event.GRANT, Event.STOP}:
        yield told(one, event)
    if one.writer in (State.OPEN, State.GRANTED, State.WRITING):
        yield told(one, Event.STOP)  # its own lapse, cancel or failure
    if one.receiver_life < world.receiver_life:
        yield told(one, Event.PEER_DIED)
    may_write = one.writer in (State.GRANTED, State.WRITING)
    if may_write and one.num_landed + one.num_in_flight < bounds.num_writes:
        yield told(one, Event.WRITE)._replace(num_queued=one.num_queued + 1)
    if one.num_queued and not one.is_moving:
        unqueued = one._replace(num_queued=one.num_queued - 1)
        if not may_write:
            yield told(unqueued, Event.LANDED, one.num_in_flight)  # cancelled before it began
        elif one.is_revoked or not reaches(world, one, bounds):
            yield told(told(unqueued, Event.LANDED, one.num_in_flight), Event.STOP)  # refused
        else:
            yield unqueued._replace(is_moving=True)


def told(one: Lent, event: Event, num_in_flight: int | None = None) -> Lent:
    before = one.num_in_flight if num_in_flight is None else num_in_flight
    if one.writer is State.CLOSED and event is Event.STOP:
        return one._replace(sent=one.sent | {Event.CLOSE})  # asked again, answered again
    return one._replace(writer=moved(End.WRITER, one.writer, event, before)[0])


def settled(one: Lent, bounds: Bounds) -> Lent:
    """What the writer's end does at once: it says that all landed, or that it closed."""
    if one.writer is State.ABANDONED:
        event = Event.CLOSE
    elif one.writer is State.GRANTED and one.num_landed == bounds.num_writes:
        event = Event.WRITTEN
    else:
        return one
    return told(one, event)._replace(sent=one.sent | {event})


def reaches(world: World, one: Lent, bounds: Bounds) -> bool:
    """Whether a write of this epoch touches the memory that the receiver has now."""
    is_there = one.receiver_life == world.receiver_life
    return is_there or bounds.broken is Rule.WRITE_NAMES_RECEIVER


def ends_of_write(world: World, index: int, bounds: Bounds) -> Iterator[World]:
    """It lands; it is said to have landed, and has not; it fails half-way."""
    one = world.lent[index]
    is_alive = one.writer_life == world.writer_life
    rest = one._replace(is_moving=False)
    if is_alive:
        rest = told(rest, Event.LANDED, one.num_in_flight)
        done = settled(rest._replace(num_landed=one.num_landed + 1), bounds)
        may_write = rest.writer in (State.GRANTED, State.WRITING)
        failed = settled(told(rest, Event.STOP) if may_write else rest, bounds)
    else:
        done = failed = rest
    landed, lost = world.having(index, done), world.having(index, done)
    if reaches(world, one, bounds):
        writer, num = world.content
        landed = landed._replace(content=(index, num + 1 if writer == index else 1))
    yield landed
    yield lost
    yield world.having(index, failed)


# -- what must hold ----------------------------------------------------------------------------


def check(world: World, bounds: Bounds) -> None:
    for index, one in enumerate(world.lent):
        if one.is_moving and reaches(world, one, bounds):
            is_lent = one.receiver_life == world.receiver_life and not one.is_free
            assert is_lent, f"epoch {index} writes into a block that is not lent to it: {world}"
    here = [i for i, one in enumerate(world.lent) if one.receiver_life == world.receiver_life]
    if here and world.lent[here[-1]].receiver is State.VERIFIED:
        is_right = world.content == (here[-1], bounds.num_writes)
        assert is_right, f"a block in use is not what epoch {here[-1]} wrote: {world}"


RECEIVER_STATES = {State.GRANTED, State.ABANDONED, State.WRITTEN, State.VERIFIED, State.CLOSED}
WRITER_STATES = {State.OPEN, State.GRANTED, State.WRITING, State.STOPPING} | {
    State.WRITTEN,
    State.CLOSED,
}


def check_step(before: World, after: World) -> None:
    """What is stopped stays stopped, what is over stays over."""
    for old, new in zip(before.lent, after.lent, strict=False):
        assert new.receiver in RECEIVER_STATES, f"a receiver is lost: {after}"
        assert new.writer in WRITER_STATES, f"a writer is lost: {after}"
        assert not old.is_free or new.receiver is old.receiver, f"it was over: {after}"
        if old.receiver is State.ABANDONED:
            assert new.receiver in (State.ABANDONED, State.CLOSED), f"it was given up: {after}"
        if old.writer in (State.STOPPING, State.WRITTEN, State.CLOSED):
            may_write = new.writer in (State.OPEN, State.GRANTED, State.WRITING)
            assert not may_write, f"a writer was stopped, and writes: {after}"


@cache
def check_ends(one: Lent, bounds: Bounds, *, is_alive: bool) -> None:
    """Whatever has happened, both ends let go once nothing is lost any more.

    Cleared by whoever changes the table.
    """
    stopped = one if one.is_free else received(one, Event.STOP)
    if is_alive:
        writers_end = ended_by_writer(one, bounds)
        is_over = writers_end.writer in (State.WRITTEN, State.CLOSED)
        assert is_over, f"a writer never ends: {one}"
        for event in writers_end.sent & {Event.WRITTEN, Event.CLOSE}:
            answered = stopped if stopped.is_free else received(stopped, event)
            assert answered.is_free, f"nothing comes of the writer's '{event}': {one}"
    # A writer that is frozen for ever is killed.
    killed = stopped if stopped.is_free else received(stopped, Event.PEER_DIED)
    assert killed.is_free, f"nothing comes of the writer's death: {one}"
    if bounds.revokes and not stopped.is_free:
        assert received(stopped, Event.REVOKED).is_free, f"revoked for nothing: {one}"


def ended_by_writer(one: Lent, bounds: Bounds) -> Lent:
    """It hears a STOP, its queued writes are cancelled, the last one ends, and it says so."""
    one = settled(told(one, Event.STOP) if one.writer is not State.WRITTEN else one, bounds)
    while one.num_in_flight:
        before = one.num_in_flight
        rest = one._replace(is_moving=False, num_queued=before - 1)
        one = settled(told(rest, Event.LANDED, before), bounds)
    return one
