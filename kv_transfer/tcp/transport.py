"""KV over our own TCP streams: for hosts without RDMA, straight from pool to pool.

The receiving end takes part: it knows who writes, asks for every frame whether it is admitted,
and revokes for certain. The files beside this one: `dial` gets to a peer (`handshake`), `link`
sends, `receiver` takes in; both speak in `frame`s over a `wire`, as large as a `trial` says.
"""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import numpy as np

from cluster.addresses import Endpoint
from cluster.authority import PLAIN, Credentials
from cluster.errors import ConfigError, TransferFailed
from cluster.measurements import Measurements
from kv_transfer.admissions import Admissions
from kv_transfer.geometry import SpanPairs, Spans
from kv_transfer.life import Life, ProcessAddress, ProcessWatch
from kv_transfer.pool import FilePool
from kv_transfer.tcp.dial import Dialler, TcpAddress
from kv_transfer.tcp.frame import TRIAL_EPOCH, Framing
from kv_transfer.tcp.link import TcpLink, TcpWrite
from kv_transfer.tcp.receiver import TcpCounters, TcpReceiver
from kv_transfer.tcp.trial import choose_framing
from kv_transfer.tcp.wire import TlsWhereDue
from kv_transfer.transport import Landed


class TcpTransport:
    name = "tcp"

    def __init__(
        self,
        pool: FilePool,
        *,
        host: str,
        advertise: str = "",
        port: int = 0,
        key: bytes,
        credentials: Credentials = PLAIN,
        num_streams: int = 1,
        measurements: Measurements | None = None,
    ) -> None:
        """`host` is where it listens, `advertise` what peers dial; empty: the same. Raises
        ConfigError."""
        host = host.strip("[]")
        target = advertise.strip("[]") or host
        self._tls = TlsWhereDue(credentials)
        listening = _listen(host, target, port)
        self._memory = pool.buffer
        self._target = TcpAddress(
            target,
            listening.getsockname()[1],
            pool.incarnation,
            pool.num_bytes,
            ProcessAddress.own(),
        )
        self._dialler = Dialler(
            incarnation=pool.incarnation,
            num_bytes=pool.num_bytes,
            key=key,
            tls=self._tls,
            num_streams=num_streams,
        )
        self._receiver = TcpReceiver(
            self._memory,
            listening,
            incarnation=pool.incarnation,
            key=key,
            tls=self._tls.at(self._target.endpoint),
        )
        self._peers: dict[str, TcpPeer] = {}
        self._measurements = measurements
        self._num_streams = num_streams

    @property
    def address(self) -> str:
        return str(self._target)

    @property
    def counters(self) -> TcpCounters:
        """Counts what came in."""
        return self._receiver.counters

    async def connect(self, address: str) -> "TcpPeer":
        peer = self._peers.get(address)
        if peer is None:
            peer = await self._open(TcpAddress.parse(address))
            other = self._peers.setdefault(address, peer)
            if other is not peer:  # of another task, meanwhile
                peer.close("It is connected twice.")
                peer = other
        return peer

    def close(self) -> None:
        """Writes in flight fail. Waits for no peer, but for a call in progress: two seconds."""
        peers = list(self._peers.values())
        self._peers.clear()
        for peer in peers:
            peer.close("The transport is closed.")
        for peer in peers:
            peer.join()
        self._receiver.close()

    async def _open(self, target: TcpAddress) -> "TcpPeer":
        if self._receiver.is_closed:
            raise TransferFailed("The transport is closed.")
        life = Life()
        # The watch stands before the peer proves who it is: what is watched is that process.
        watch = ProcessWatch(target.process, life) if target.process.is_here else None
        dial = partial(self._dialler.dial, target)
        link = TcpLink(target.incarnation, dial, self._memory, target.num_bytes)
        peer = TcpPeer(
            target,
            self._receiver.admissions,
            life=life,
            link=link,
            watch=watch,
            source_bytes=len(self._memory),
        )
        try:
            await asyncio.wrap_future(link.is_up)
            if self._measurements is not None:
                way = "TLS" if self._tls.at(target.endpoint) else "plain"
                where = "on one machine" if watch else "between machines"
                kind = f"{way}, {self._num_streams} streams, {where}"
                peer.framing = await asyncio.to_thread(
                    choose_framing, peer.try_framing, kind, self._measurements
                )
        except BaseException:
            peer.close("It was never connected.")
            raise
        life.on_end(lambda: self._forget(str(target), peer))  # the first to hear of it
        return peer

    def _forget(self, address: str, peer: "TcpPeer") -> None:
        if self._peers.get(address) is peer:
            del self._peers[address]
        peer.close("Its process is dead, or was given up.")


class TcpPeer:
    transport = TcpTransport.name

    def __init__(
        self,
        target: TcpAddress,
        admissions: Admissions,
        *,
        life: Life,
        link: TcpLink,
        watch: ProcessWatch | None,
        source_bytes: int,
    ) -> None:
        self.incarnation = target.incarnation
        self.num_bytes = target.num_bytes
        self.life = life
        self._admissions = admissions  # of all peers
        self._link = link
        self._watch = watch
        self._source_bytes = source_bytes
        self.framing = Framing()

    def write(
        self,
        pairs: SpanPairs,
        *,
        epoch: int,
        digest: bool,
        may_start: Callable[[], bool],
    ) -> "Future[Landed]":
        return self._link.write(
            TcpWrite(pairs, epoch=epoch, digest=digest, may_start=may_start, framing=self.framing)
        )

    def try_framing(self, framing: Framing, num_bytes: int) -> "Future[Landed]":
        """Sends so many bytes, or what there is, that land nowhere."""
        size = np.array([min(num_bytes, self._source_bytes, self.num_bytes)])
        nowhere = np.zeros(1, dtype=np.int64)
        pairs = SpanPairs(source=nowhere, destination=nowhere, sizes=size)
        write = TcpWrite(
            pairs, epoch=TRIAL_EPOCH, digest=True, may_start=lambda: True, framing=framing
        )
        return self._link.write(write)

    def admit(self, epoch: int, allows: Callable[[Spans], bool]) -> None:
        self._admissions.admit(self.incarnation, epoch, allows)

    def revoke(self, epoch: int) -> bool:
        self._admissions.revoke(self.incarnation, epoch)
        return True

    def close(self, reason: str) -> None:
        """Nothing that it does reaches our pool any more, nor do our writes reach its."""
        if self._watch is not None:
            self._watch.close()
        self._link.close(reason)
        self._admissions.revoke_all(self.incarnation)

    def join(self) -> None:
        self._link.join()


def _listen(host: str, target: str, port: int) -> socket.socket:
    if Endpoint(target, port).is_any:
        raise ConfigError(
            f"KV over TCP cannot be dialled at '{target}': name the address by which other workers "
            "reach this machine."
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"KV over TCP cannot listen on {host}, port {port or 'any'}: {error}."
        ) from error
