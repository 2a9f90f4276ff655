"""KV by NIXL: one-sided writes into a peer's registered memory, by the fastest lane that UCX finds
between the two (RDMA, NVLink, a kernel's copy between processes of one machine, TCP).

NIXL is only polled: one thread (`progress_loop`) does everything with it, from the first post to
the last release. Its own progress thread stays off: on two cores it takes half the bandwidth.
"""

import asyncio
import itertools
import logging
import secrets
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import xxhash

from cluster.errors import TransferFailed
from cluster.lateness import Patience
from kv_transfer.conversion import Conversion
from kv_transfer.geometry import Offsets, SpanPairs, Spans
from kv_transfer.life import Life, ProcessAddress, ProcessWatch
from kv_transfer.nixl.address import NixlAddress
from kv_transfer.nixl.agent import NixlAgent, may_copy, rows
from kv_transfer.nixl.progress_loop import ProgressLoop, Steps
from kv_transfer.pool import FilePool
from kv_transfer.span_copy import STAGE_BYTES, SpanCopier, unit_indices
from kv_transfer.transport import Landed, WriteRefused, WriteUnsettled

GREETING_BYTES = 16
NUM_LANDINGS = 64  # a greeting that comes too late must not be taken for another
NUM_TIMED_GREETINGS = 5
GREETING_S = 5.0
APART_BYTES = 4 * 2**20  # from which the digest is worth a thread of its own

# A first contact needs the progress of both ends whatever the lane, and a two-sided lane always.
IDLE_S = 0.005
IDLE_TWO_SIDED_S = 0.001

logger = logging.getLogger(__name__)


class NixlTransport:
    name = "nixl"

    def __init__(
        self, pool: FilePool, *, host: str, key: bytes, allows_two_sided: bool = True
    ) -> None:
        """On a loopback `host` no other machine is reached. Without `allows_two_sided`, peers
        that only UCX's TCP leads to are refused: our own is faster, and can be revoked.

        Raises ConfigError where NIXL is missing or does not start.
        """
        self._key = key
        self._allows_two_sided = allows_two_sided
        self._memory = pool.memory
        self._copier = SpanCopier()
        self._digester = pool.digester()  # of the next
        self._digests = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-nixl-digest")
        self._greetings = np.zeros((1 + NUM_LANDINGS, GREETING_BYTES), dtype=np.uint8)
        self._greetings[0] = np.frombuffer(secrets.token_bytes(GREETING_BYTES), dtype=np.uint8)
        self._landings = itertools.cycle(self._greetings[1:])
        self._agent = NixlAgent(pool.incarnation, host, [self._memory, self._greetings])
        self.address = NixlAddress(
            incarnation=pool.incarnation,
            num_bytes=pool.num_bytes,
            pool=self._memory.ctypes.data,
            greeting_at=self._greetings.ctypes.data,
            process=ProcessAddress.own(),
            copies=may_copy(),
            greeting=self._greetings[0].tobytes(),
            metadata=self._agent.metadata(),
        ).sealed(key)
        self._peers: dict[str, NixlPeer] = {}
        self._idle_s = IDLE_S
        self._loop = ProgressLoop(
            "kv-nixl", progress=self._agent.progress, idle_s=lambda: self._idle_s
        )

    async def connect(self, address: str) -> "NixlPeer":
        peer = self._peers.get(address)
        if peer is None:
            peer = await self._open(NixlAddress.unsealed(address, self._key))
            other = self._peers.setdefault(address, peer)
            if other is not peer:  # of another task, meanwhile
                peer.close()
                return other
            peer.life.on_end(lambda: self._forget(address))
            self._choose_idle()
        return peer

    def close(self) -> None:
        self._loop.close()
        self._digests.shutdown()
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()
        self._agent.close()

    def write(
        self,
        peer: "NixlPeer",
        pairs: SpanPairs,
        *,
        digest: bool,
        may_start: Callable[[], bool],
    ) -> "Future[Landed]":
        steps = self._write(peer, pairs, digest, may_start)
        return self._loop.submit(peer.incarnation, steps)

    async def _open(self, target: NixlAddress) -> "NixlPeer":
        life = Life()
        life.on_end(lambda: self._loop.fail(target.incarnation, _gone(target)))
        # The watch stands before the peer shows its greeting: what is watched is that process.
        # The end of one that cannot be seen from here is told by whoever keeps the members.
        watch = ProcessWatch(target.process, life) if target.process.is_here else None
        try:
            async with Patience(GREETING_S):
                greeting = self._loop.submit(target.incarnation, self._greet(target))
                is_one_sided = await asyncio.wrap_future(greeting)
        except BaseException as error:
            self._loop.fail(target.incarnation, _gone(target))
            if watch is not None:
                watch.close()
            if isinstance(error, TimeoutError):
                raise TransferFailed(
                    f"'{target.incarnation}' does not answer by NIXL within {GREETING_S:g} s: it "
                    "hangs, or no lane that UCX may use leads there (UCX_TLS, UCX_NET_DEVICES)."
                ) from error
            raise
        if not (is_one_sided or self._allows_two_sided):
            if watch is not None:
                watch.close()
            self._loop.submit(target.incarnation, self._disconnect(target.incarnation))
            raise TransferFailed(
                f"Between us and '{target.incarnation}' NIXL has no one-sided lane (RDMA, kernel "
                "copies); over TCP the transport 'tcp' is better."
            )
        kind = "one-sided writes" if is_one_sided else "writes that need its progress"
        logger.info("NIXL reaches '%s' by %s.", target.incarnation, kind)
        return NixlPeer(self, target, life=life, watch=watch, is_one_sided=is_one_sided)

    def _forget(self, address: str) -> None:
        peer = self._peers.pop(address, None)
        if peer is not None:
            peer.close()
            self._loop.submit(peer.incarnation, self._disconnect(peer.incarnation))
            self._choose_idle()

    def _choose_idle(self) -> None:
        is_one_sided = all(peer.is_one_sided for peer in self._peers.values())
        self._idle_s = IDLE_S if is_one_sided else IDLE_TWO_SIDED_S

    def _greet(self, target: NixlAddress) -> Steps[bool]:
        """Reads the peer's greeting, which makes the connection; returns whether the lane is
        one-sided: no turn of its progress loop is waited for. Within a machine that is known;
        across a network it is seen by how long a read takes."""
        landing = next(self._landings)
        landing[:] = 0
        sizes = np.array([GREETING_BYTES])
        ours = rows(landing.ctypes.data, sizes * 0, sizes)
        theirs = rows(target.greeting_at, sizes * 0, sizes)
        yield from self._agent.move("READ", target, ours, theirs)
        if landing.tobytes() != target.greeting:
            raise TransferFailed(f"Where '{target.incarnation}' was there is another process.")
        if target.process.is_here:
            return may_copy() and target.copies
        times = [time.perf_counter()]
        for _ in range(NUM_TIMED_GREETINGS):
            yield from self._agent.move("READ", target, ours, theirs)
            times.append(time.perf_counter())
        return statistics.median(np.diff(times)) < IDLE_TWO_SIDED_S / 4

    def _disconnect(self, name: str) -> Steps[None]:
        self._agent.disconnect(name)
        yield from ()

    def _write(
        self, peer: "NixlPeer", pairs: SpanPairs, digest: bool, may_start: Callable[[], bool]
    ) -> Steps[Landed]:
        target = peer.target
        if peer.life.is_over:
            raise WriteRefused(f"'{peer.incarnation}' is gone, or was given up.")
        if not pairs.fits(len(self._memory), target.num_bytes):
            raise ValueError(
                f"A span lies outside its pool ({len(self._memory)} and {target.num_bytes} bytes)."
            )
        begin = time.perf_counter()
        value: int | None
        try:
            if pairs.conversion is None:
                value = yield from self._write_equal(target, pairs, digest, may_start)
            else:
                conversion = pairs.conversion
                value = yield from self._write_converted(target, pairs, conversion, may_start)
        except TransferFailed as error:
            if isinstance(error, WriteRefused) or peer.copies_at_once:
                raise
            raise WriteUnsettled(str(error)) from error
        seconds = time.perf_counter() - begin
        return Landed(num_bytes=pairs.num_bytes, seconds=seconds, digest=value)

    def _write_equal(
        self, target: NixlAddress, pairs: SpanPairs, digest: bool, may_start: Callable[[], bool]
    ) -> Steps[int | None]:
        """Returns the digest, where it is asked for."""
        digested = None
        if digest:
            digested = self._digest(Spans(offsets=pairs.source, sizes=pairs.sizes))
        if len(pairs):
            ours = rows(self._memory.ctypes.data, pairs.source, pairs.sizes)
            theirs = rows(target.pool, pairs.destination, pairs.sizes)
            yield from self._agent.move("WRITE", target, ours, theirs, may_start)
        if digested is None:
            return None
        while not digested.done():
            yield
        return digested.result()

    def _digest(self, spans: Spans) -> "Future[int]":
        """Digests much on another thread, while it moves; little at once, which is faster."""
        if spans.num_bytes >= APART_BYTES:
            return self._digests.submit(self._digester, spans)
        digested: Future[int] = Future()
        digested.set_result(self._copier.digest(self._memory, spans))
        return digested

    def _write_converted(
        self,
        target: NixlAddress,
        pairs: SpanPairs,
        conversion: Conversion,
        may_start: Callable[[], bool],
    ) -> Steps[int]:
        """The receiving end takes no part: what it wants is made here, a stageful at a time."""
        row = conversion.destination_row_bytes
        where = unit_indices(pairs.destination, pairs.destination_sizes, row)
        hasher = xxhash.xxh3_64()
        done = 0
        with self._agent.stage(STAGE_BYTES // conversion.source_row_bytes * row) as stage:
            for wire in self._copier.encoded(self._memory, pairs):
                some = conversion.decode(wire)
                stage[: len(some)] = some
                hasher.update(some.data)
                runs = _runs(where[done : done + len(some) // row])
                done += len(some) // row
                ours = rows(stage.ctypes.data, runs.source * row, runs.sizes * row)
                theirs = rows(target.pool, runs.destination * row, runs.sizes * row)
                yield from self._agent.move("WRITE", target, ours, theirs, may_start)
                may_start = _begun
        return int(hasher.intdigest())


def _runs(where: Offsets) -> SpanPairs:
    """Rows that lie one after another here, and where they go: as many at a time as can."""
    first = np.flatnonzero(np.diff(where, prepend=-2) != 1)
    return SpanPairs(
        source=first, destination=where[first], sizes=np.diff(first, append=len(where))
    )


def _begun() -> bool:
    return True


class NixlPeer:
    transport = NixlTransport.name

    def __init__(
        self,
        ours: NixlTransport,
        target: NixlAddress,
        *,
        life: Life,
        watch: ProcessWatch | None,
        is_one_sided: bool,
    ) -> None:
        self.target = target
        self.incarnation = target.incarnation
        self.num_bytes = target.num_bytes
        self.life = life
        self.is_one_sided = is_one_sided  # it need not run for our writes to land
        self._ours = ours
        self._watch = watch

    @property
    def copies_at_once(self) -> bool:
        """Tells whether the kernel copies, within one machine. Whatever a network has taken may
        arrive although the sender was told of a failure."""
        return self.is_one_sided and self.target.process.is_here

    def write(
        self,
        pairs: SpanPairs,
        *,
        epoch: int,
        digest: bool,
        may_start: Callable[[], bool],
    ) -> "Future[Landed]":
        return self._ours.write(self, pairs, digest=digest, may_start=may_start)

    def admit(self, epoch: int, allows: Callable[[Spans], bool]) -> None:
        """Whoever is connected can write all of our pool: nothing to enforce."""

    def revoke(self, epoch: int) -> bool:
        """Revokes nothing. What a peer can do about our memory is everyone's: taking the memory
        away from NIXL would end it for all, and an epoch is one writer's."""
        return False

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()


def _gone(target: NixlAddress) -> TransferFailed:
    return TransferFailed(f"'{target.incarnation}' is gone, or was given up.")
