"""A plain TCP socket as a yardstick: sendall, recv_into, one byte back. One stream or several."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from bench.kv_cases import Turns, share
from kv_transfer.geometry import SpanPair, SpanPairs
from kv_transfer.span_copy import Bytes

HOST = "127.0.0.1"
HEADER = struct.Struct("<16sI")  # case, turn
DONE = b"\1"


class SocketSender:
    def __init__(self, source: Bytes, port: int, *, num_streams: int) -> None:
        self.name = f"socket x{num_streams}" if num_streams > 1 else "socket"
        self._source = source.data
        self._sockets = [socket.create_connection((HOST, port)) for _ in range(num_streams)]
        for number, one in enumerate(self._sockets):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.sendall(bytes([number]))
        self._others = ThreadPoolExecutor(max_workers=max(1, num_streams - 1))

    def move(self, turns: Turns, turn: int) -> float:
        header = HEADER.pack(str(turns.case).encode(), turn)
        pairs, of = turns.pairs(turn), len(self._sockets)
        parts = [list(share(pairs, number, of)) for number in range(of)]
        begin = time.perf_counter()
        others = [
            self._others.submit(self._send, one, header, part)
            for one, part in zip(self._sockets[1:], parts[1:], strict=True)
        ]
        self._send(self._sockets[0], header, parts[0])
        for other in others:
            other.result()
        return time.perf_counter() - begin

    def close(self) -> None:
        for one in self._sockets:
            one.close()
        self._others.shutdown()

    def _send(self, to: socket.socket, header: bytes, part: Iterable[SpanPair]) -> None:
        to.sendall(header)
        for source, _, num_bytes in part:
            to.sendall(self._source[source : source + num_bytes])
        if to.recv(1) != DONE:
            raise ConnectionError("The receiver of the bare socket is gone.")


class SocketReceiver:
    """A thread a stream, each writing its share of a turn into the pool."""

    def __init__(self, pool: Bytes, turns: Mapping[str, Turns], *, num_streams: int) -> None:
        self._pool = pool.data
        self._turns = turns
        self._num_streams = num_streams
        self._listening = socket.create_server((HOST, 0))
        self.port: int = self._listening.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept) for _ in range(num_streams)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Returns when the streams' threads have ended."""
        for one in (self._listening, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # wakes whoever waits on it
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _accept(self) -> None:
        try:
            stream, _ = self._listening.accept()
        except OSError:
            return  # closed before anyone came
        self._sockets.append(stream)
        with stream:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = stream.recv(1)[0]
            while header := stream.recv(HEADER.size, socket.MSG_WAITALL):
                case, turn = HEADER.unpack(header)
                pairs = self._turns[case.rstrip(b"\0").decode()].pairs(turn)
                self._receive(stream, share(pairs, number, self._num_streams))
                stream.sendall(DONE)

    def _receive(self, stream: socket.socket, part: SpanPairs) -> None:
        for _, destination, num_bytes in part:
            view = self._pool[destination : destination + num_bytes]
            while len(view):
                received = stream.recv_into(view)
                if not received:
                    return
                view = view[received:]
