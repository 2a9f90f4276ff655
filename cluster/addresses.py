"""Says where something listens and who is meant by an address, as text, names and numbers. What
listens on all addresses of a machine is meant by each of them."""

import socket
from contextlib import suppress
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import unquote

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
        """Gives the address that this machine dials: a socket on all addresses is reached by the
        loopback."""
        return Endpoint("127.0.0.1", self.port) if self.is_any else self

    @property
    def is_any(self) -> bool:
        """Tells whether it is no address, but all of a machine's."""
        return not self.host or (_is_number(self.host) and ip_address(self.host).is_unspecified)

    def is_reached_by(self, asked: "Endpoint") -> bool:
        """Tells whether who dials `asked` on this machine reaches what listens here."""
        if self.port != asked.port:
            return False
        ours, theirs = resolve(self.host), resolve(asked.to_dial.host)
        is_any = any(each.is_unspecified for each in ours)
        return any(map(is_own, theirs)) if is_any else not ours.isdisjoint(theirs)

    @property
    def is_loopback(self) -> bool:
        """Tells what `is_loopback` says of its host."""
        return is_loopback(self.host)

    @property
    def is_open_to_others(self) -> bool:
        """Tells whether others than this machine may come in. A name that means nothing is one that
        nobody can tell."""
        found = resolve(self.host)
        return not found or any(not each.is_loopback for each in found)


def is_host(text: str) -> bool:
    """Tells whether it is written as a name or a number, without brackets and port."""
    labels = text.removesuffix(".").split(".")
    is_name = len(text) <= 253 and all(
        0 < len(each) <= 63 and each.replace("-", "").replace("_", "").isalnum() for each in labels
    )
    return _is_number(text) or (is_name and text.isascii())


def is_loopback(host: str) -> bool:
    """Tells by what is written whether only this machine is meant: a name may mean something else
    on another machine."""
    return host == "localhost" or (_is_number(host) and ip_address(host).is_loopback)


def is_loopback_address(address: str) -> bool:
    """The same of HOST:PORT, or of anything else that gRPC dials."""
    return is_loopback(address.rpartition(":")[0].strip("[]"))


def host_of_peer(peer: str) -> str:
    """The address that a caller's connection comes from, without its port. `peer`: as gRPC writes
    it, `ipv6:%5B::1%5D:4711`."""
    _, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]") or unquote(peer)


def advertised(listens: Endpoint, host: str | None) -> Endpoint:
    """Says how others reach what listens there: by `host`, else as it listens, else by an address
    of this machine towards others.

    Raises ConfigError where no other process could dial it, or would not come by the way (TLS or
    not) that is spoken there.
    """
    if host is None and listens.is_any:
        families = (6, 4) if ":" in listens.host else (4,)
        found = [each for each in outward() if ip_address(each).version in families]
        if not found:
            raise ConfigError(
                f"'address' is '{listens}', all of this machine's, and none that others reach was"
                " found: give theirs for it as 'advertise'."
            )
        host = found[0]
    theirs = Endpoint(listens.host if host is None else host, listens.port)
    if theirs.is_any or not is_host(theirs.host):
        raise ConfigError(
            f"'advertise' is '{theirs.host[:80]}', which nobody can dial: give a host's name or its"
            " address, without a port."
        )
    if theirs.is_loopback != listens.is_loopback:
        raise ConfigError(
            f"'address' is '{listens}' and 'advertise' '{host}': one of them is for this machine"
            " alone, so what is dialled is not what listens; give both for others, or neither."
        )
    return theirs


def resolve(host: str) -> frozenset[Ip]:
    """All that a name or number means; nothing where it is unknown. Empty: every address."""
    if not host:
        return frozenset({ip_address("0.0.0.0")})
    with suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return frozenset(_plain(str(address[0])) for *_, address in found)
    return frozenset()


def is_own(ip: Ip) -> bool:
    """Tells whether it is one of this machine's: nothing else can be bound."""
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
