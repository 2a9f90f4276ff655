"""A network between processes in which one pair can be cut, in silence and in both directions.

Each worker lives in a network namespace of its own on one bridge. A cut pair's frames go to an
address that nobody has: nothing is refused, nothing is answered.
"""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_NOBODY = "02:00:00:00:00:01"


def _ip(*words: str, inside: str = "") -> None:
    where = ("-n", inside) if inside else ()
    subprocess.run(["ip", *where, *words], check=True, capture_output=True, text=True)


class Network:
    """The router is at `.1`, the workers from `.2` on."""

    def __init__(self, names: Sequence[str]) -> None:
        self._tag = f"p{os.getpid() % 100_000}"
        self._subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self._numbers = {name: number for number, name in enumerate(names, 2)}
        self.gateway = f"{self._subnet}.1"

    def address(self, name: str) -> str:
        return f"{self._subnet}.{self._numbers[name]}"

    def inside(self, name: str) -> tuple[str, ...]:
        """What a command begins with, to run where this worker lives."""
        return ("ip", "netns", "exec", self._space(name))

    def cut(self, one: str, other: str) -> None:
        for here, there in ((one, other), (other, one)):
            words = ("neigh", "replace", self.address(there), "lladdr", _NOBODY, "dev", "eth0")
            _ip(*words, "nud", "permanent", inside=self._space(here))

    def heal(self, one: str, other: str) -> None:
        for here, there in ((one, other), (other, one)):
            _ip("neigh", "del", self.address(there), "dev", "eth0", inside=self._space(here))

    def _space(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def build(self) -> None:
        bridge = f"{self._tag}br"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{self.gateway}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for name, number in self._numbers.items():
            space, outside = self._space(name), f"{self._tag}v{number}"
            _ip("netns", "add", space)
            _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", outside, "master", bridge, "up")
            _ip("addr", "add", f"{self.address(name)}/24", "dev", "eth0", inside=space)
            for link in ("eth0", "lo"):
                _ip("link", "set", link, "up", inside=space)

    def remove(self) -> None:
        for name in self._numbers:
            subprocess.run(["ip", "netns", "del", self._space(name)], capture_output=True)
        subprocess.run(["ip", "link", "del", f"{self._tag}br"], capture_output=True)


@contextmanager
def network(names: Sequence[str]) -> Iterator[Network | None]:
    """None where this machine does not allow it, with the reason printed."""
    net = Network(names)
    try:
        try:
            net.build()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"No network namespaces here: {getattr(error, 'stderr', '') or error}")
            yield None
        else:
            print("Cut between network namespaces.")
            yield net
    finally:
        net.remove()
