"""Both ends of one loan and of its transfer as a finite world, and all that can happen next.

The two ends are the real ones of `loan.py`, over the real table of `transfer.py`; between them
is a call, whose words arrive in order until either end leaves it. Time passes in thirds of a lease.
A frozen end takes no step while time passes; a world that is `fair` lets none pass while there is
something to do. A `false` end says whatever it likes.
"""

from collections.abc import Iterator
from copy import copy
from typing import Final, NamedTuple

from cluster.errors import TransferFailed
from kv_transfer.loan import Borrower, Lender, Phase, Silent, Word
from kv_transfer.transfer import End, Event, State, Transfer

LEASE = 3  # thirds of it
GRANT = 4
END: Final = "end"


class Bounds(NamedTuple):
    has_tokens: bool = True  # a prompt's
    is_fair: bool = False
    false_end: str = ""  # "lender", "borrower"
    forgets_fences: bool = False


class At(NamedTuple):
    """How far one end is. Ages are of the last word, in thirds of a lease."""

    phase: Phase = Phase.ASKED
    owes_tokens: bool = False  # waits for them, at a borrower
    heard: int = 0
    said: int = 0
    found: int = 0
    transfer: State = State.OPEN
    has_left: bool = False
    is_stuck: bool = False  # nothing it does moves: a lender's write in flight for ever


class World(NamedTuple):
    borrower: At
    lender: At
    to_borrower: tuple[str, ...] = ()
    to_lender: tuple[str, ...] = ()
    is_writing: bool = False
    has_landed: bool = False
    is_fenced: bool = False  # the lender has promised never to write this epoch again

    def sent(self, end: End, word: str) -> "World":
        """Signs of life that nobody has heard yet are one."""
        field = "to_lender" if end is End.RECEIVER else "to_borrower"
        queue: tuple[str, ...] = getattr(self, field)
        if word == Word.ALIVE and queue[-1:] == (Word.ALIVE,):
            return self
        return self._replace(**{field: (*queue, word)})


class Wrong(AssertionError):
    """What must not be."""


def begun(bounds: Bounds) -> World:
    return World(At(owes_tokens=bounds.has_tokens), At(owes_tokens=bounds.has_tokens))


def steps(world: World, bounds: Bounds) -> Iterator[World]:
    todo = [*borrower_steps(world, bounds), *lender_steps(world, bounds)]
    yield from todo
    yield from leaving(world)
    if not (bounds.is_fair and is_busy(world)):
        yield world._replace(borrower=older(world.borrower), lender=older(world.lender))


def is_busy(world: World) -> bool:
    """Somebody has something to do that only a frozen one would leave undone."""
    ends = (borrower_of(world.borrower), lender_of(world.lender))
    left = (world.borrower.has_left, world.lender.has_left)
    owes = any(one._owes_sign(0) for one, gone in zip(ends, left, strict=True) if not gone)
    unheard = (world.to_borrower and not world.borrower.has_left) or (
        world.to_lender and not world.lender.has_left
    )
    is_over = world.borrower.phase is Phase.WRITTEN
    return bool(unheard) or (owes and not is_over)


def older(at: At) -> At:
    """No older than what matters to anybody."""
    if at.has_left or at.phase is Phase.WRITTEN:
        return at._replace(heard=0, said=0, found=0)
    found = min(at.found + 1, GRANT) if at.phase is Phase.FOUND else 0
    return at._replace(heard=min(at.heard + 1, LEASE), said=1, found=found)


# -- the borrower ----------------------------------------------------------------------------------


def borrower_of(at: At) -> Borrower:
    made = Borrower(0, lease_s=LEASE, grant_s=GRANT, wants_tokens=at.owes_tokens)
    made.phase, made._heard_at, made._said_at = at.phase, -at.heard, -at.said
    made._found_at = -at.found
    return made


def borrower_at(at: At, made: Borrower) -> At:
    return at._replace(
        phase=made.phase,
        owes_tokens=made._wants_tokens,
        heard=int(-made._heard_at),
        said=int(-made._said_at),
        found=int(-made._found_at) if made._found_at <= 0 else 0,
    )


def borrower_steps(world: World, bounds: Bounds) -> Iterator[World]:
    at = world.borrower
    if at.has_left:
        if at.transfer is State.ABANDONED and is_over(world.lender.transfer):
            closed = moved(End.RECEIVER, at, Event.CLOSE)
            yield world._replace(borrower=closed, is_fenced=not bounds.forgets_fences)
        return
    if bounds.false_end == "borrower":
        yield from (world.sent(End.RECEIVER, word) for word in false_words(world.to_lender))
        return
    if world.to_borrower:
        word, rest = world.to_borrower[0], world.to_borrower[1:]
        yield hears_at_borrower(world._replace(to_borrower=rest), word, bounds)
    made = borrower_of(at)
    if at.phase is Phase.FOUND:
        made.grants(0)
        granted = moved(End.RECEIVER, borrower_at(at, made), Event.GRANT)
        yield world._replace(borrower=granted).sent(End.RECEIVER, Word.GRANT)
        made = borrower_of(at)
    try:
        says = made.tick(0)
    except TransferFailed as error:
        if bounds.is_fair and isinstance(error, Silent) and not world.lender.is_stuck:
            raise Wrong(f"a lender that lives is given up: {world}") from error
        yield left(world, End.RECEIVER)
    else:
        if says:
            following = world._replace(borrower=borrower_at(at, made))
            yield following.sent(End.RECEIVER, Word.ALIVE)


def hears_at_borrower(world: World, word: str, bounds: Bounds) -> World:
    at = world.borrower
    if word == END:
        return world if at.phase is Phase.WRITTEN else left(world, End.RECEIVER)
    made = borrower_of(at)
    try:
        made.heard(Word(word), 0)
    except TransferFailed as error:
        if not bounds.false_end:
            raise Wrong(f"'{word}' is refused, and was right: {world}") from error
        return left(world, End.RECEIVER)
    at = borrower_at(at, made)
    if at.phase is Phase.WRITTEN:
        if world.borrower.transfer is State.OPEN or at.owes_tokens:
            raise Wrong(f"what was not granted, or has no token, is taken for written: {world}")
        is_right = world.has_landed and not world.is_writing
        at = moved(End.RECEIVER, at, Event.WRITTEN)
        at = moved(End.RECEIVER, at, Event.VERIFY if is_right else Event.REJECT)
    return world._replace(borrower=at)


# -- the lender ------------------------------------------------------------------------------------


def lender_of(at: At) -> Lender:
    made = Lender(0, lease_s=LEASE, owes_tokens=at.owes_tokens)
    made.phase, made._heard_at, made._said_at = at.phase, -at.heard, -at.said
    return made


def lender_at(at: At, made: Lender) -> At:
    return at._replace(
        phase=made.phase,
        owes_tokens=made.owes_tokens,
        heard=int(-made._heard_at),
        said=int(-made._said_at),
    )


def lender_steps(world: World, bounds: Bounds) -> Iterator[World]:
    at = world.lender
    if world.is_writing:  # whoever is still there
        landed = moved(End.WRITER, at, Event.LANDED)
        yield settled(world._replace(lender=landed, is_writing=False, has_landed=True))
    if at.has_left:
        return
    if bounds.false_end == "lender":
        yield from (world.sent(End.WRITER, word) for word in false_words(world.to_borrower))
        return
    if world.to_lender:
        word, rest = world.to_lender[0], world.to_lender[1:]
        yield from hears_at_lender(world._replace(to_lender=rest), word, bounds)
    for word in words_of(at):
        made = lender_of(at)
        made.says(word, 0)
        yield world._replace(lender=lender_at(at, made)).sent(End.WRITER, word)
    if at.transfer is State.GRANTED and not world.has_landed:
        writing = moved(End.WRITER, at, Event.WRITE)
        yield world._replace(lender=writing, is_writing=True)
        if not bounds.is_fair:
            yield world._replace(lender=writing._replace(is_stuck=True), is_writing=True)
    yield from lender_ticks(world, bounds)


def lender_ticks(world: World, bounds: Bounds) -> Iterator[World]:
    at, made = world.lender, lender_of(world.lender)
    try:
        says = made.tick(0, moves=not at.is_stuck)
    except Silent as error:
        if bounds.is_fair:
            raise Wrong(f"a borrower that lives is given up: {world}") from error
        yield left(world, End.WRITER)
    else:
        if says:
            yield world._replace(lender=lender_at(at, made)).sent(End.WRITER, Word.ALIVE)


def words_of(at: At) -> Iterator[Word]:
    if at.phase is Phase.ASKED:
        yield Word.FOUND
    elif at.owes_tokens:
        yield Word.TOKENS
    elif at.transfer is State.WRITTEN and at.phase is not Phase.WRITTEN:
        yield Word.WRITTEN


def hears_at_lender(world: World, word: str, bounds: Bounds) -> Iterator[World]:
    at = world.lender
    if word == END:
        yield left(world, End.WRITER)
        return
    made = lender_of(at)
    try:
        counts = made.heard(Word(word), 0)
    except TransferFailed as error:
        if not bounds.false_end:
            raise Wrong(f"'{word}' is refused, and was right: {world}") from error
        yield left(world, End.WRITER)
        return
    heard = lender_at(at, made)
    if word == Word.GRANT and counts:
        if at.phase is Phase.ASKED or at.transfer is not State.OPEN:
            raise Wrong(f"a grant counts that is the second, or too early: {world}")
        if world.is_fenced:  # its borrower has given it up
            yield left(world._replace(lender=heard), End.WRITER)
            return
        heard = moved(End.WRITER, heard, Event.GRANT)
    yield world._replace(lender=heard)
    if word == Word.GRANT and counts:  # its lease may lapse by the true clock at any moment
        yield settled(world._replace(lender=moved(End.WRITER, heard, Event.STOP)))


# -- both ------------------------------------------------------------------------------------------


def leaving(world: World) -> Iterator[World]:
    """A cancel, a deadline, a failure, a death."""
    if not world.borrower.has_left and world.borrower.phase is not Phase.WRITTEN:
        yield left(world, End.RECEIVER)
    if not world.lender.has_left:
        yield left(world, End.WRITER)


def left(world: World, end: End) -> World:
    """The other hears of it after what was said before."""
    at = world.lender if end is End.WRITER else world.borrower
    at = at._replace(has_left=True, heard=0, said=0, found=0)
    if at.transfer is not State.OPEN and not is_over(at.transfer):
        at = moved(end, at, Event.STOP)
    if end is End.RECEIVER:
        return world._replace(borrower=at, to_borrower=()).sent(end, END)
    return settled(world._replace(lender=at, to_lender=()).sent(end, END))


def settled(world: World) -> World:
    """What the writer's end does at once: it says that all has landed, or closes."""
    at = world.lender
    if at.transfer is State.ABANDONED:
        return world._replace(lender=moved(End.WRITER, at, Event.CLOSE))
    if at.transfer is State.GRANTED and world.has_landed:
        return world._replace(lender=moved(End.WRITER, at, Event.WRITTEN))
    return world


def moved(end: End, at: At, event: Event) -> At:
    """One step of the real table."""
    machine = Transfer(end)
    machine.state = at.transfer
    machine._num_in_flight = at.transfer in (State.WRITING, State.STOPPING)
    match event:
        case Event.WRITE:
            machine.begin_write()
        case Event.LANDED:
            machine.end_write()
        case _:
            machine.apply(event)
    return at._replace(transfer=machine.state)


def is_over(state: State) -> bool:
    return state in (State.OPEN, State.WRITTEN, State.VERIFIED, State.CLOSED)


def false_words(queue: tuple[str, ...]) -> Iterator[Word]:
    if not queue:
        yield from Word


# -- what must hold --------------------------------------------------------------------------------


def check(world: World) -> None:
    is_free = world.borrower.transfer in (State.VERIFIED, State.CLOSED)
    if is_free and world.is_writing:
        raise Wrong(f"a write goes into blocks that are in use: {world}")
    if world.borrower.transfer is State.VERIFIED and not world.has_landed:
        raise Wrong(f"what never landed is used: {world}")


def check_ends(world: World) -> None:
    """Either end leaves once it hears nothing for long enough, though the other is frozen."""
    at = world.borrower
    if not at.has_left and at.phase is not Phase.WRITTEN:
        made = borrower_of(at._replace(heard=LEASE))
        try:
            made.tick(0)
        except TransferFailed:
            pass
        else:
            raise Wrong(f"a borrower waits for ever: {world}")
    at = world.lender
    if not at.has_left and at.transfer is State.OPEN and at.phase is not Phase.WRITTEN:
        made_lender = lender_of(copy(at)._replace(heard=LEASE))
        try:
            made_lender.tick(0, moves=True)
        except Silent:
            pass
        else:
            raise Wrong(f"a lender waits for ever: {world}")
