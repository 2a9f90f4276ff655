"""What moves bytes between registered pools: the contract that every transport keeps.

A transport knows no layout, no block and no request; grants, leases, digests and closes
travel on the control stream. Doors are listed in `kv_transfer/doors.py`.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster.errors import TransferFailed
from cluster.types import Incarnation
from kv_transfer.layout import SpanPairs
from kv_transfer.life import Life


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """A pool to allocate: whose it is, how large, and where its transport keeps its files."""

    incarnation: Incarnation
    num_bytes: int
    run_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """A write whose bytes are in the destination."""

    num_bytes: int
    seconds: float
    digest: int | None


class WriteRefused(TransferFailed):
    """The writer itself refused to start: its grant was stopped or lapsed meanwhile."""


class Peer(Protocol):
    """Another worker's pool, reachable while its process lives."""

    @property
    def incarnation(self) -> Incarnation: ...

    @property
    def num_bytes(self) -> int: ...

    @property
    def life(self) -> Life:
        """Ends when the process that owns the pool is dead, for certain and not before."""
        ...


class Transport(Protocol):
    """Owns one pool and one writer thread."""

    @property
    def name(self) -> str:
        """Its key in `doors.TRANSPORTS` and in a worker's address."""
        ...

    @property
    def buffer(self) -> memoryview:
        """The pool, writable and zeroed; the engine's tensors lie in it."""
        ...

    @property
    def address(self) -> str:
        """What peers pass to `connect`; opaque to everyone else."""
        ...

    def connect(self, address: str) -> Peer:
        """The peer behind an address, the same one while it lives.

        Raises TransferFailed when it is wrong, dead or not of this machine.
        """
        ...

    def write(
        self,
        peer: Peer,
        pairs: SpanPairs,
        *,
        epoch: int,
        digest: bool,
        may_start: Callable[[], bool],
    ) -> "Future[Landed]":
        """Copies from our pool into the peer's, in order of submission; from any thread.

        `may_start` is asked on the writer's thread right before the first byte moves; a
        refusal fails the future with WriteRefused. Cancelling the future succeeds exactly
        when no byte has moved and none will.
        """
        ...

    def revoke(self, epoch: int) -> bool:
        """Whether, from now on, certainly no write of this epoch can reach our pool."""
        ...

    def close(self) -> None:
        """Ends the write in flight, cancels the others, gives the pool back."""
        ...
