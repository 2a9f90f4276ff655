"""How both ends of a connection of frames know each other: the worker invites over a call that is
proven already (`cluster/proof.py`), and each then shows that it knows what was said there.

    invited: port, name, secret             (over gRPC, under TLS beyond loopback)
    HELLO    ▶ name, nonce, proof           an invitation is good once, and for ten seconds
    WELCOME  ◀ proof
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cluster.mac import MAC_BYTES, is_mac, mac

_NAME_BYTES: Final = 16
_SECRET_BYTES: Final = 32
_NONCE_BYTES: Final = 32
_GOOD_FOR_S: Final = 10.0
_MOST: Final = 256  # at a time: the oldest lapse


class Invitation(NamedTuple):
    """Lets its holder make one connection."""

    name: bytes
    secret: bytes

    def hello(self, nonce: bytes) -> bytes:
        return self.name + nonce + mac(self.secret, "guest", nonce)

    def is_welcome(self, payload: bytes, nonce: bytes) -> bool:
        return is_mac(payload, self.secret, "host", nonce)


def new_nonce() -> bytes:
    return secrets.token_bytes(_NONCE_BYTES)


@dataclass(slots=True, eq=False)
class Invitations:
    """Keeps those that were not used yet."""

    clock: Callable[[], float]
    _open: dict[bytes, tuple[bytes, float]] = field(default_factory=dict, repr=False)

    def invite(self) -> Invitation:
        while len(self._open) >= _MOST:
            self._open.pop(next(iter(self._open)))
        made = Invitation(secrets.token_bytes(_NAME_BYTES), secrets.token_bytes(_SECRET_BYTES))
        self._open[made.name] = made.secret, self.clock() + _GOOD_FOR_S
        return made

    def welcome(self, hello: bytes) -> bytes | None:
        """Gives the host's proof to who was invited; None: that was nobody."""
        if len(hello) != _NAME_BYTES + _NONCE_BYTES + MAC_BYTES:
            return None
        name, said = hello[:_NAME_BYTES], hello[_NAME_BYTES:]
        nonce, proof = said[:_NONCE_BYTES], said[_NONCE_BYTES:]
        secret, until = self._open.pop(name, (b"", 0.0))
        if self.clock() > until or not is_mac(proof, secret, "guest", nonce):
            return None
        return mac(secret, "host", nonce)
