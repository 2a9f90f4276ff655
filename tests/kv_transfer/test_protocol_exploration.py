"""Every interleaving of two ends, with loss, doubling, reordering, lapses and crashes.

Two hand-overs (epochs) lend the same block, one after the other, to a writer that may be
restarted in between. What was once sent may arrive at any later moment, any number of times,
or never: so a message in `sent` is never taken out, and the whole space is finite.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from kv_transfer import transfer
from kv_transfer.transfer import End, Event, State, Transfer

EPOCHS = (0, 1)
NUM_WRITES = 2  # of a complete hand-over
MESSAGES = {Event.GRANT, Event.STOP, Event.WRITTEN, Event.CLOSE}


@dataclass(frozen=True)
class Epoch:
    receiver: State | None = None  # None: not reserved yet
    writer: State = State.OPEN
    in_flight: bool = False
    num_landed: int = 0
    incarnation: int = 0  # of the writer
    sent: frozenset[Event] = frozenset()

    @property
    def is_free(self) -> bool:
        """The receiver may use the block for something else."""
        return self.receiver in (State.CLOSED, State.VERIFIED)


@dataclass(frozen=True)
class World:
    epochs: tuple[Epoch, ...] = (Epoch(), Epoch())
    incarnation: int = 0  # of the writer's process; 0 and 1, the last stays
    content: tuple[int, int] = (-1, 0)  # of the block: last epoch that wrote, its writes

    def with_epoch(self, index: int, **changes: object) -> "World":
        epochs = list(self.epochs)
        epochs[index] = replace(epochs[index], **changes)
        return replace(self, epochs=tuple(epochs))


def moved(end: End, state: State, event: Event) -> State:
    machine = Transfer(end)
    machine.state = state
    return machine.apply(event)


def received(world: World, index: int, event: Event) -> World:
    epoch = world.epochs[index]
    assert epoch.receiver is not None
    return world.with_epoch(index, receiver=moved(End.RECEIVER, epoch.receiver, event))


def receiver_steps(world: World, index: int) -> Iterator[World]:
    epoch = world.epochs[index]
    if epoch.receiver is None:
        if all(earlier.is_free for earlier in world.epochs[:index]):
            yield world.with_epoch(
                index,
                receiver=State.GRANTED,
                incarnation=world.incarnation,
                sent=frozenset({Event.GRANT}),
            )
        return
    if epoch.receiver in (State.GRANTED, State.ABANDONED):
        # Lapse, cancel and fence are the same: stop waiting, tell the writer, again and again.
        yield received(world, index, Event.STOP).with_epoch(index, sent=epoch.sent | {Event.STOP})
    if epoch.receiver is State.WRITTEN:
        is_right = world.content == (index, NUM_WRITES)
        assert is_right, f"epoch {index} was said to be written: {world}"
        yield received(world, index, Event.VERIFY)
        yield received(world, index, Event.STOP)
    for event in epoch.sent & {Event.WRITTEN, Event.CLOSE}:
        yield received(world, index, event)
    if epoch.incarnation < world.incarnation:  # its process is dead, and now it is seen
        yield received(world, index, Event.PEER_DIED)


def writer_steps(world: World, index: int) -> Iterator[World]:
    epoch = world.epochs[index]
    if epoch.receiver is None or epoch.incarnation != world.incarnation:
        return
    for event in epoch.sent & {Event.GRANT, Event.STOP}:
        yield settled(world.with_epoch(index, writer=moved(End.WRITER, epoch.writer, event)), index)
    if epoch.writer in (State.OPEN, State.GRANTED, State.WRITING):  # its own lapse or failure
        yield settled(
            world.with_epoch(index, writer=moved(End.WRITER, epoch.writer, Event.STOP)), index
        )
    if epoch.in_flight:
        landed = world.with_epoch(
            index,
            writer=moved(End.WRITER, epoch.writer, Event.LANDED),
            in_flight=False,
            num_landed=epoch.num_landed + 1,
        )
        yield settled(replace(landed, content=(index, epoch.num_landed + 1)), index)
    elif epoch.writer is State.GRANTED and epoch.num_landed < NUM_WRITES:
        state = moved(End.WRITER, epoch.writer, Event.WRITE)
        begun = world.with_epoch(index, writer=state, in_flight=True)
        yield replace(begun, content=(index, 0) if epoch.num_landed == 0 else begun.content)


def settled(world: World, index: int) -> World:
    """What the writer's end does at once: it says that all landed, or that it closed."""
    epoch = world.epochs[index]
    if epoch.writer is State.ABANDONED:
        event = Event.CLOSE
    elif epoch.writer is State.GRANTED and epoch.num_landed == NUM_WRITES:
        event = Event.WRITTEN
    elif epoch.writer is State.CLOSED:
        return world.with_epoch(index, sent=epoch.sent | {Event.CLOSE})  # asked again
    else:
        return world
    state = moved(End.WRITER, epoch.writer, event)
    return world.with_epoch(index, writer=state, sent=epoch.sent | {event})


def steps(world: World) -> Iterator[World]:
    for index in EPOCHS:
        yield from receiver_steps(world, index)
        yield from writer_steps(world, index)
    if world.incarnation == 0:
        crashed = replace(world, incarnation=1)
        for index in EPOCHS:
            crashed = crashed.with_epoch(index, in_flight=False)  # dies with its process
        yield crashed


def check(world: World) -> None:
    for index, epoch in enumerate(world.epochs):
        if epoch.in_flight:
            assert not epoch.is_free, f"epoch {index} is written after its block was freed"
    verified = [i for i, epoch in enumerate(world.epochs) if epoch.receiver is State.VERIFIED]
    if verified and all(later.receiver is None for later in world.epochs[verified[-1] + 1 :]):
        assert world.content == (verified[-1], NUM_WRITES), "a block in use changed"


def explore() -> set[World]:
    seen = {World()}
    frontier = deque(seen)
    while frontier:
        world = frontier.popleft()
        check(world)
        for following in steps(world):
            if following not in seen:
                seen.add(following)
                frontier.append(following)
    return seen


def ended(world: World, index: int) -> World:
    """What happens when the receiver has let go, and from now on nothing is lost."""
    for _ in range(6):
        epoch = world.epochs[index]
        if epoch.receiver is None or epoch.is_free:
            return world
        if epoch.receiver is State.WRITTEN or Event.STOP not in epoch.sent:
            world = received(world, index, Event.STOP)
            world = world.with_epoch(index, sent=epoch.sent | {Event.STOP})
        elif epoch.incarnation < world.incarnation:
            world = received(world, index, Event.PEER_DIED)
        elif epoch.in_flight:
            *_, world = writer_steps(world, index)
        elif epoch.sent & {Event.WRITTEN, Event.CLOSE}:
            world = received(world, index, min(epoch.sent & {Event.WRITTEN, Event.CLOSE}))
        else:
            state = moved(End.WRITER, epoch.writer, Event.STOP)
            world = settled(world.with_epoch(index, writer=state), index)
    raise AssertionError(f"epoch {index} never ends: {world}")


def explore_and_end() -> set[World]:
    worlds = explore()
    for world in worlds:
        for index in EPOCHS:
            ended(world, index)
    return worlds


def test_no_interleaving_reuses_a_block_early_or_uses_an_unwritten_one() -> None:
    worlds = explore_and_end()
    assert len(worlds) > 2000
    states = {epoch.receiver for world in worlds for epoch in world.epochs}
    assert states == {None, *State} - {State.OPEN, State.WRITING, State.STOPPING}


@pytest.mark.parametrize(
    ("state", "event", "wrong"),
    [
        (State.GRANTED, Event.STOP, State.CLOSED),  # a lapse frees
        (State.ABANDONED, Event.STOP, State.CLOSED),  # a second one frees
        (State.WRITING, Event.STOP, State.ABANDONED),  # closed with a write in flight
        (State.STOPPING, Event.STOP, State.ABANDONED),
        (State.CLOSED, Event.GRANT, State.GRANTED),  # a late grant reopens
        (State.ABANDONED, Event.CLOSE, State.ABANDONED),  # the writer's word is not heard
        (State.ABANDONED, Event.PEER_DIED, State.ABANDONED),
    ],
)
def test_the_exploration_finds_what_a_wrong_table_does(
    monkeypatch: pytest.MonkeyPatch, state: State, event: Event, wrong: State
) -> None:
    monkeypatch.setitem(transfer.TABLE, (state, event), wrong)
    with pytest.raises((AssertionError, transfer.LocalProtocolError)):
        explore_and_end()
