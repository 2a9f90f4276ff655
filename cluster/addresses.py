"""Where something listens and who is meant by an address, as text, names and numbers. What listens
on all addresses of a machine is meant by each of them."""

import socket
from contextlib import suppress
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from cluster.errors import ConfigError

Ip = IPv4Address | IPv6Address
_SOMEWHERE = (("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6))  # in documents only


class Endpoint(NamedTuple):
    """A host, by name or number and without brackets, and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Raises ConfigError where this is no HOST:PORT."""
        host, colon, port = text.rpartition(":")
        is_bare_v6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
        if not colon or is_bare_v6 or not (port.isdecimal() and int(port) <= 0xFFFF):
            raise ConfigError(f"'{text}' is no HOST:PORT: write it as 127.0.0.1:50051.")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def to_dial(self) -> "Endpoint":
        """From this machine: a socket on all addresses is reached by the loopback."""
        is_any = self.host == "" or (_is_number(self.host) and ip_address(self.host).is_unspecified)
        return Endpoint("127.0.0.1", self.port) if is_any else self

    def is_reached_by(self, asked: "Endpoint") -> bool:
        """Whether who dials `asked` on this machine reaches what listens here."""
        if self.port != asked.port:
            return False
        ours, theirs = resolve(self.host), resolve(asked.to_dial.host)
        is_any = any(each.is_unspecified for each in ours)
        return any(map(is_own, theirs)) if is_any else not ours.isdisjoint(theirs)

    @property
    def is_open_to_others(self) -> bool:
        """Than this machine. A name that means nothing is one that nobody can tell."""
        found = resolve(self.host)
        return not found or any(not each.is_loopback for each in found)


def resolve(host: str) -> frozenset[Ip]:
    """All that a name or number means; nothing where it is unknown. Empty: every address."""
    if not host:
        return frozenset({ip_address("0.0.0.0")})
    with suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return frozenset(_plain(str(address[0])) for *_, address in found)
    return frozenset()


def is_own(ip: Ip) -> bool:
    """Whether it is one of this machine's: nothing else can be bound."""
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((str(ip), 0))
        return True
    return False


@cache
def outward() -> tuple[str, ...]:
    """This machine's own addresses towards others, one a family; nothing is sent to find them."""
    found = []
    for target, family in _SOMEWHERE:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            found.append(str(probe.getsockname()[0]))
    return tuple(found)


def _is_number(host: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(host))
    return False


def _plain(text: str) -> Ip:
    ip = ip_address(text.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return mapped or ip
