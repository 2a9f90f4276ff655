"""Dials where a worker listens: gives connections that are proven, or a sentence."""

import re
import socket
import ssl
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.errors import TransferFailed
from cluster.lateness import LOOK_S, Limit
from cluster.types import Incarnation
from kv_transfer.life import ProcessAddress
from kv_transfer.tcp.handshake import Hello, greet
from kv_transfer.tcp.wire import TlsWhereDue, Wire, finish, open_wire

CONNECT_S = 2.0  # for all streams together

_ADDRESS = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]{2,64}\]|[A-Za-z0-9_.-]{1,253}):(?P<port>\d{1,5})"
    r":(?P<incarnation>[A-Za-z0-9_.-]{1,128}):(?P<num_bytes>\d{1,18})"
    r":(?P<pid>\d{1,10}):(?P<pid_namespace>\d{1,18}):(?P<boot_id>[0-9a-f-]{1,64})",
    re.ASCII,
)


class TcpAddress(NamedTuple):
    host: str
    port: int
    incarnation: Incarnation
    num_bytes: int
    process: ProcessAddress

    @property
    def endpoint(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return ":".join(map(str, (self.endpoint, self.incarnation, self.num_bytes, *self.process)))

    @classmethod
    def parse(cls, text: str) -> "TcpAddress":
        """Raises TransferFailed."""
        match = _ADDRESS.fullmatch(text)
        if match is None or int(match["port"]) > 65535:
            raise TransferFailed(f"{text[:200]!r} is not the address of a KV pool over TCP.")
        process = ProcessAddress(int(match["pid"]), int(match["pid_namespace"]), match["boot_id"])
        return cls(
            match["host"].strip("[]"),
            int(match["port"]),
            Incarnation(match["incarnation"]),
            int(match["num_bytes"]),
            process,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialler:
    """Us, as whoever we dial gets to know us."""

    incarnation: Incarnation
    num_bytes: int
    key: bytes = field(repr=False)
    tls: TlsWhereDue
    num_streams: int

    def dial(self, target: TcpAddress) -> list[Wire]:
        """All streams to one peer. Blocks for CONNECT_S at most; raises TransferFailed."""
        limit = Limit(CONNECT_S)
        wires: list[Wire] = []
        try:
            while len(wires) < self.num_streams:
                wires.append(self._dial_one(target, limit))
        except (OSError, TransferFailed) as error:
            for wire in wires:
                wire.close()
            raise TransferFailed(f"{target.endpoint}: {_sentence(error)}") from error
        return wires

    def _dial_one(self, target: TcpAddress, limit: Limit) -> Wire:
        left_s = max(LOOK_S, limit.left_s())
        stream = socket.create_connection((target.host, target.port), timeout=left_s)
        try:
            wire = open_wire(stream, self.tls.at(target.endpoint), is_server=False)
        except BaseException:
            stream.close()
            raise
        try:
            own = Hello(incarnation=self.incarnation, num_bytes=self.num_bytes)
            theirs = finish(wire, greet(wire, own, self.key), limit)
            _check(theirs, target)
        except BaseException:
            wire.close()
            raise
        return wire


def _check(hello: Hello, target: TcpAddress) -> None:
    if hello.incarnation != target.incarnation:
        raise TransferFailed(
            f"'{hello.incarnation}' listens there now, not '{target.incarnation}': "
            "the worker was restarted."
        )
    if hello.num_bytes != target.num_bytes:
        raise TransferFailed(
            f"The KV pool there has {hello.num_bytes} bytes; its address says {target.num_bytes}."
        )


def _sentence(error: Exception) -> str:
    match error:
        case TransferFailed():
            return str(error)
        case ssl.SSLError():
            return (
                f"TLS failed ({error.reason or error}): both workers need TLS, with certificates "
                "of the same authority."
            )
        case TimeoutError():
            return (
                f"Nobody answered within {CONNECT_S:g} s: its worker is frozen, or a firewall "
                "drops the packets."
            )
        case ConnectionRefusedError():
            return "Nothing listens there: its worker is gone, or a firewall refuses."
        case ConnectionResetError() | BrokenPipeError():
            return (
                "It hung up before it said who it is: both workers need the same version, "
                "and TLS or not."
            )
        case _:
            return f"It cannot be reached: {error}."
