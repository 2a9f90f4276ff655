"""Moves bytes between registered pools: the contract that every transport keeps.

A transport knows no layout, no block and no request; grants, leases, digests and closes
travel on the control stream. Doors are listed in `kv_transfer/doors.py`.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from cluster.errors import TransferFailed
from cluster.types import Incarnation
from kv_transfer.geometry import SpanPairs, Spans
from kv_transfer.life import Life


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """A write whose bytes are in the destination."""

    num_bytes: int
    seconds: float
    digest: int | None


class WriteRefused(TransferFailed):
    """No byte of this write moved: its grant was stopped, lapsed or revoked before it began."""


class WriteUnsettled(TransferFailed):
    """A write failed, and bytes of it may still be on their way: the receiver must not reuse its
    blocks while its process lives."""


class Peer(Protocol):
    """Another worker's pool, reachable by one transport while its process lives."""

    @property
    def transport(self) -> str:
        """The name of the transport behind it."""
        ...

    @property
    def incarnation(self) -> Incarnation: ...

    @property
    def num_bytes(self) -> int: ...

    @property
    def life(self) -> Life:
        """Ends when the process that owns the pool is dead, for certain and not before, or
        when nothing that it does can reach our pool any more."""
        ...

    def write(
        self,
        pairs: SpanPairs,
        *,
        epoch: int,
        digest: bool,
        may_start: Callable[[], bool],
    ) -> "Future[Landed]":
        """Copies from our pool into the peer's, in order of submission; from any thread.

        The future is done when the bytes are in the destination, not when they are on their
        way. `may_start` is asked right before the first byte moves, on no event loop; a refusal
        fails the future with WriteRefused. Cancelling the future succeeds exactly when no byte
        has moved and none will. Spans outside a pool fail it with ValueError; whatever goes
        wrong on the way, with TransferFailed: what of it may still land the receiver can revoke,
        unless it is WriteUnsettled.
        """
        ...

    def admit(self, epoch: int, allows: Callable[[Spans], bool]) -> None:
        """The peer may write into our pool in this epoch of ours, where `allows` says so.

        A transport whose receiving end takes part enforces it; others cannot.
        """
        ...

    def revoke(self, epoch: int) -> bool:
        """Tells whether, from now on, certainly no write of this epoch by the peer can reach our
        pool. Never blocks on the peer."""
        ...


class Transport(Protocol):
    """One way in and out of one pool."""

    @property
    def name(self) -> str:
        """Its key in `doors.DOORS` and in a worker's address."""
        ...

    @property
    def address(self) -> str:
        """Gives what peers pass to `connect`; opaque to everyone else."""
        ...

    async def connect(self, address: str) -> Peer:
        """The peer behind an address, the same one while it lives.

        Raises TransferFailed when it is wrong, dead, or cannot be reached this way.
        """
        ...

    def close(self) -> None:
        """Ends the write in flight, cancels the others, forgets every peer."""
        ...
