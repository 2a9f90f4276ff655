"""KV by torch's process groups: NCCL between GPU pools, gloo wherever there is no NCCL.

Workers come and go, so a writer and a receiver have a group of their own, of two ranks, beside
the line that joins them (`line.py`). When one fails, both go; the next write makes new
ones. A peer that is frozen or dead holds up only the writes to itself: each has its own thread.
"""

import asyncio
import re
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from cluster.addresses import Endpoint
from cluster.errors import ConfigError, TransferFailed
from cluster.types import Incarnation
from kv_transfer.admissions import Admissions
from kv_transfer.collective.line import GREETING_S, Line, rank_proof
from kv_transfer.collective.process_group import GroupMaker, ProcessGroup, Rank
from kv_transfer.collective.receiver import CollectiveReceiver
from kv_transfer.collective.writer import LineWriter, WriteStopped
from kv_transfer.device_pool import tensor_of
from kv_transfer.geometry import SpanPairs, Spans
from kv_transfer.life import Life, ProcessAddress, ProcessWatch
from kv_transfer.pool import KvPool
from kv_transfer.staging import on_own_stream
from kv_transfer.tcp.handshake import Hello
from kv_transfer.transport import Landed, WriteRefused
from kv_transfer.writer_thread import submit

STALL_S = 5.0  # without progress, after which a write fails, and its line and group go

_ADDRESS = re.compile(
    r"(?P<incarnation>[A-Za-z0-9_.-]{1,128}) (?P<num_bytes>\d{1,18}) "
    r"(?P<pid>\d{1,9}) (?P<namespace>\d{1,18}) (?P<boot_id>[A-Za-z0-9-]{1,64}) "
    r"(?P<host>[A-Za-z0-9_.:-]{1,255}) (?P<port>\d{1,5})",
    re.ASCII,
)


class _CollectiveAddress(NamedTuple):
    incarnation: Incarnation
    num_bytes: int
    process: ProcessAddress
    host: str
    port: int

    def __str__(self) -> str:
        incarnation, num_bytes, process, *listener = self
        return " ".join(map(str, (incarnation, num_bytes, *process, *listener)))

    @classmethod
    def parse(cls, text: str) -> "_CollectiveAddress":
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise TransferFailed(f"'{text[:200]}' is not the address of a KV pool's process group.")
        return cls(
            incarnation=Incarnation(match["incarnation"]),
            num_bytes=int(match["num_bytes"]),
            process=ProcessAddress(int(match["pid"]), int(match["namespace"]), match["boot_id"]),
            host=match["host"],
            port=int(match["port"]),
        )


class CollectiveTransport:
    def __init__(
        self, name: str, pool: KvPool, *, host: str, key: bytes, stall_s: float = STALL_S
    ) -> None:
        """`name` is 'gloo' or 'nccl'; peers dial `host`, which is where it listens.

        Raises ConfigError where that cannot be.
        """
        self.name = name
        self._pool = tensor_of(pool)
        _check_host(name, host)
        self._own = partial(Hello, incarnation=pool.incarnation, num_bytes=pool.num_bytes)
        self._key = key
        self._stall_s = stall_s
        self._peers: dict[str, CollectivePeer] = {}
        self._groups = GroupMaker(name, self._pool.device, host)
        self._receiver = CollectiveReceiver(host, self._pool, self._welcome, stall_s)
        process = ProcessAddress.own()
        self.address = str(
            _CollectiveAddress(pool.incarnation, pool.num_bytes, process, host, self._receiver.port)
        )

    async def connect(self, address: str) -> "CollectivePeer":
        if address in self._peers:
            return self._peers[address]
        parsed = _CollectiveAddress.parse(address)
        dial = partial(self._dial, parsed)
        admissions = self._receiver.admissions
        peer = CollectivePeer(self.name, parsed, len(self._pool), admissions, dial)
        try:
            await asyncio.wrap_future(peer.dial())
        except BaseException:
            peer.close()
            raise
        if address in self._peers:  # meanwhile
            peer.close()
            return self._peers[address]
        self._peers[address] = peer
        peer.life.on_end(lambda: self._forget(address))
        return peer

    def close(self) -> None:
        """Waits for a write in flight: seconds where its peer is frozen."""
        for peer in self._peers.values():
            peer.finish()
        self._peers.clear()
        self._receiver.close()

    def _forget(self, address: str) -> None:
        if peer := self._peers.pop(address, None):
            peer.close()

    def _dial(self, address: _CollectiveAddress) -> LineWriter:
        """Runs on the peer's thread."""
        on_own_stream(self._pool.device)
        line = Line(_connected(address), self._stall_s)
        try:
            own = self._own()
            theirs = line.greet(own, self._key)
            if (theirs.incarnation, theirs.num_bytes) != address[:2]:
                raise TransferFailed(
                    f"There is '{theirs.incarnation}' now, not '{address.incarnation}'."
                )
            group = self._open_group(line, Rank.WRITER, own, theirs)
            return LineWriter(line, group, self._pool)
        except BaseException:
            line.close()
            raise

    def _welcome(self, line: Line) -> tuple[Incarnation, ProcessGroup]:
        """Runs on the line's thread."""
        own = self._own()
        writer = line.welcome(own, self._key)
        return writer.incarnation, self._open_group(line, Rank.RECEIVER, writer, own)

    def _open_group(self, line: Line, rank: Rank, writer: Hello, receiver: Hello) -> ProcessGroup:
        def prove(rank: Rank) -> bytes:
            return rank_proof(self._key, rank.name, writer, receiver)

        return self._groups.open(line, rank, prove)


class CollectivePeer:
    """The writer to one peer, on a thread of its own."""

    def __init__(
        self,
        transport: str,
        address: _CollectiveAddress,
        num_own_bytes: int,
        admissions: Admissions,
        dial: Callable[[], LineWriter],
    ) -> None:
        """Raises TransferFailed where its process is of this machine, and dead."""
        self.transport = transport
        self.incarnation = address.incarnation
        self.num_bytes = address.num_bytes
        self.life = Life()
        # The process says its incarnation once the watch stands: its pid is its own.
        process = address.process
        self._watch = ProcessWatch(process, self.life) if process.is_here else None
        self._num_own_bytes = num_own_bytes
        self._admissions = admissions
        self._dial = dial
        self._writer: LineWriter | None = None
        self._is_closed = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"kv-{transport}")

    def dial(self) -> "Future[LineWriter]":
        return self._thread.submit(self._connected)

    def write(
        self,
        pairs: SpanPairs,
        *,
        epoch: int,
        digest: bool,
        may_start: Callable[[], bool],
    ) -> "Future[Landed]":
        return submit(self._thread, lambda: self._write(pairs, epoch, digest, may_start))

    def admit(self, epoch: int, allows: Callable[[Spans], bool]) -> None:
        self._admissions.admit(self.incarnation, epoch, allows)

    def revoke(self, epoch: int) -> bool:
        self._admissions.revoke(self.incarnation, epoch)
        return True

    def close(self) -> None:
        """Its process is dead, or nobody wants it: waits for nothing."""
        self._is_closed = True
        if self._watch is not None:
            self._watch.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._writer is not None:
            self._writer.close()

    def finish(self) -> None:
        """The write in flight ends first."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self.close()

    def _connected(self) -> LineWriter:
        if self._writer is None or self._writer.is_closed:
            self._writer = self._dial()
        if self._is_closed:  # meanwhile
            self._writer.close()
        return self._writer

    def _write(
        self, pairs: SpanPairs, epoch: int, digest: bool, may_start: Callable[[], bool]
    ) -> Landed:
        if not pairs.fits(self._num_own_bytes, self.num_bytes):
            raise ValueError(
                f"A span lies outside its pool ({self._num_own_bytes} and {self.num_bytes} bytes)."
            )
        writer = self._connected()
        if not may_start():
            raise WriteRefused("The grant was stopped or lapsed before the write started.")
        try:
            return writer.write(pairs, epoch=epoch, digest=digest)
        except (WriteRefused, WriteStopped):
            raise
        except BaseException:
            writer.close()
            raise


def _connected(address: _CollectiveAddress) -> socket.socket:
    try:
        return socket.create_connection((address.host, address.port), timeout=GREETING_S)
    except (OSError, OverflowError, UnicodeError) as error:  # an address may be nonsense
        raise TransferFailed(
            f"Nobody answers at {address.host}:{address.port} ({error}): the worker is gone, or a "
            "firewall is between."
        ) from error


def _check_host(name: str, host: str) -> None:
    if Endpoint(host, 0).is_any:
        raise ConfigError(
            f"The transport '{name}' needs an address that peers can dial, and '{host}' is none: "
            "give the worker the address of one interface."
        )
