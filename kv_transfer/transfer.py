"""The protocol of one hand-over, without I/O and without a clock of its own.

A receiver lends blocks to a writer for one epoch. Both ends run this machine.

Rules
  1. The receiver grants; the writer writes only while granted (GRANTED, WRITING).
  2. WRITTEN is said by the writer when all has landed, CLOSE when it gives up. Both mean that
     it will never touch the epoch's blocks again; neither may be said with a write in flight.
  3. STOP is given by either end at any moment: cancel, lapse of the lease, a failed write, a
     protocol error. After it no write starts. A write in flight ends first (STOPPING).
  4. STOP frees nothing. Until the writer said WRITTEN or CLOSE, its process died, or the
     transport revoked its access, the receiver's blocks are quarantined (ABANDONED).
  5. Only VERIFIED bytes are used: WRITTEN alone says that something landed.
  6. Messages may be late, doubled or lost: an event that was overtaken changes nothing, and a
     late GRANT never reopens a hand-over.
  7. A lease is renewed by a message of the same epoch, never once it was stopped.
  8. An event that is not in the table is a bug: ours (LocalProtocolError), or the peer's
     (RemoteProtocolError), which stops the hand-over.
"""

from enum import StrEnum

from cluster.errors import TransferFailed


class End(StrEnum):
    WRITER = "writer"
    RECEIVER = "receiver"


class State(StrEnum):
    OPEN = "open"  # no grant yet
    GRANTED = "granted"  # writes may start at any moment; none in flight here
    WRITING = "writing"  # the writer alone knows: a write is in flight
    STOPPING = "stopping"  # the writer: stopped, a write still in flight
    ABANDONED = "abandoned"  # stopped, not closed: the receiver's blocks are quarantined
    WRITTEN = "written"  # all landed, closed by the writer, not verified
    VERIFIED = "verified"  # the receiver checked count and content
    CLOSED = "closed"  # nothing can be written any more, nothing may be used


class Event(StrEnum):
    GRANT = "grant"
    WRITE = "write"  # a write starts where none was in flight
    LANDED = "landed"  # the last write in flight ended
    WRITTEN = "written"
    STOP = "stop"
    CLOSE = "close"
    PEER_DIED = "peer_died"  # the other process is gone, for certain
    REVOKED = "revoked"  # the transport took the writer's access away, for certain
    VERIFY = "verify"
    REJECT = "reject"  # short, or another content


WRITER_EVENTS = frozenset({Event.WRITE, Event.LANDED, Event.WRITTEN, Event.CLOSE})

TABLE: dict[tuple[State, Event], State] = {
    (State.OPEN, Event.GRANT): State.GRANTED,
    (State.OPEN, Event.STOP): State.ABANDONED,
    (State.OPEN, Event.CLOSE): State.CLOSED,
    (State.OPEN, Event.PEER_DIED): State.CLOSED,
    (State.GRANTED, Event.GRANT): State.GRANTED,
    (State.GRANTED, Event.WRITE): State.WRITING,
    (State.GRANTED, Event.WRITTEN): State.WRITTEN,
    (State.GRANTED, Event.STOP): State.ABANDONED,
    (State.GRANTED, Event.CLOSE): State.CLOSED,
    (State.GRANTED, Event.PEER_DIED): State.CLOSED,
    (State.WRITING, Event.GRANT): State.WRITING,
    (State.WRITING, Event.LANDED): State.GRANTED,
    (State.WRITING, Event.STOP): State.STOPPING,
    (State.WRITING, Event.PEER_DIED): State.STOPPING,
    (State.STOPPING, Event.GRANT): State.STOPPING,
    (State.STOPPING, Event.LANDED): State.ABANDONED,
    (State.STOPPING, Event.STOP): State.STOPPING,
    (State.STOPPING, Event.PEER_DIED): State.STOPPING,
    (State.ABANDONED, Event.GRANT): State.ABANDONED,
    (State.ABANDONED, Event.STOP): State.ABANDONED,
    (State.ABANDONED, Event.WRITTEN): State.CLOSED,
    (State.ABANDONED, Event.CLOSE): State.CLOSED,
    (State.ABANDONED, Event.PEER_DIED): State.CLOSED,
    (State.ABANDONED, Event.REVOKED): State.CLOSED,
    (State.WRITTEN, Event.GRANT): State.WRITTEN,
    (State.WRITTEN, Event.WRITTEN): State.WRITTEN,
    (State.WRITTEN, Event.CLOSE): State.WRITTEN,
    (State.WRITTEN, Event.PEER_DIED): State.WRITTEN,
    (State.WRITTEN, Event.STOP): State.CLOSED,
    (State.WRITTEN, Event.VERIFY): State.VERIFIED,
    (State.WRITTEN, Event.REJECT): State.CLOSED,
    (State.VERIFIED, Event.WRITTEN): State.VERIFIED,
    (State.VERIFIED, Event.CLOSE): State.VERIFIED,
    (State.VERIFIED, Event.PEER_DIED): State.VERIFIED,
    (State.VERIFIED, Event.STOP): State.VERIFIED,
    (State.CLOSED, Event.GRANT): State.CLOSED,
    (State.CLOSED, Event.WRITTEN): State.CLOSED,
    (State.CLOSED, Event.STOP): State.CLOSED,
    (State.CLOSED, Event.CLOSE): State.CLOSED,
    (State.CLOSED, Event.PEER_DIED): State.CLOSED,
    (State.CLOSED, Event.REVOKED): State.CLOSED,
}


class LocalProtocolError(RuntimeError):
    """We broke the protocol: a bug on this side."""


class RemoteProtocolError(TransferFailed):
    """The peer broke the protocol."""


class Transfer:
    """One hand-over as one end sees it. Time is whatever clock its owner passes in."""

    __slots__ = ("_deadline", "_lease_s", "_num_in_flight", "end", "state")

    def __init__(self, end: End) -> None:
        self.end = end
        self.state = State.OPEN
        self._num_in_flight = 0
        self._lease_s = 0.0
        self._deadline = float("inf")

    @property
    def may_write(self) -> bool:
        return self.state in (State.GRANTED, State.WRITING)

    @property
    def is_over(self) -> bool:
        """No write of this epoch can happen any more."""
        return self.state in (State.WRITTEN, State.VERIFIED, State.CLOSED)

    @property
    def deadline(self) -> float:
        """Says when the lease lapses."""
        return self._deadline

    def apply(self, event: Event) -> State:
        """Moves to the next state.

        Raises LocalProtocolError or RemoteProtocolError where the table has none.
        """
        following = TABLE.get((self.state, event))
        if following is None:
            self._refuse(event)
        else:
            self.state = following
        return self.state

    def grant(self, lease_s: float, now: float) -> State:
        if self.state is State.OPEN:
            self._lease_s = lease_s
            self._deadline = now + lease_s
        return self.apply(Event.GRANT)

    def renew(self, now: float) -> None:
        """Extends the lease, unless the hand-over is stopped or over."""
        if self.may_write and now < self._deadline:
            self._deadline = now + self._lease_s

    def is_lapsed(self, now: float) -> bool:
        return self.may_write and now >= self._deadline

    def begin_write(self) -> None:
        if not self.may_write:
            self._refuse(Event.WRITE)
        if self._num_in_flight == 0:
            self.apply(Event.WRITE)
        self._num_in_flight += 1

    def end_write(self) -> None:
        if self._num_in_flight == 0:
            self._refuse(Event.LANDED)
        self._num_in_flight -= 1
        if self._num_in_flight == 0:
            self.apply(Event.LANDED)

    def _refuse(self, event: Event) -> None:
        problem = f"A hand-over that is {self.state} at the {self.end} cannot take '{event}'"
        if event is Event.PEER_DIED or (event in WRITER_EVENTS) == (self.end is End.WRITER):
            raise LocalProtocolError(f"{problem}: this end is wrong.")
        self.state = TABLE[self.state, Event.STOP]
        raise RemoteProtocolError(f"{problem}: the peer is wrong, and the hand-over is stopped.")
