"""Proves who is at the other end of a connection: both ends prove that they hold the cluster's
token, which itself never travels. Pure: no I/O.

    client                              server
    nonce, audience, its proof ───────▶ refuses who lacks the token, or looks for another
           ◀─────────────────────────── its nonce, its proof
    calls, each with a pass ──────────▶ refuses a pass of another connection, method or life

The audience is whom the client believes to be there: one life of a worker at one address, so that
a stranger who listens elsewhere cannot have the true one answer for it. The server's nonce is made
from the connection that asks and a secret of this life of the server: nothing is kept for a
client, and a pass that was overheard is worth nothing on another connection. No clocks.
"""

import secrets
from dataclasses import dataclass, field

from cluster.addresses import host_of_peer, is_loopback
from cluster.errors import InvalidRequest, Unauthenticated
from cluster.mac import derived_key, is_mac, mac
from cluster.types import WorkerAddress

NONCE_BYTES = 32
MAX_AUDIENCE_LETTERS = 1_000
ANYONE = ""  # as an audience: whoever holds the token
_USE = "calls between processes"
_SCHEME = "Penstock "
_WRONG_TOKEN = "The cluster's token is another one there: give both the same secrets file."


def audience_of(worker: WorkerAddress) -> str:
    """Names one life of a worker where it listens."""
    return f"{worker.incarnation}@{worker.address}"


@dataclass(frozen=True, slots=True)
class ServerProof:
    """A server's half of the proof."""

    nonce: bytes
    proof: bytes


class Doorkeeper:
    """The server's end, for one life of a process."""

    def __init__(self, token: str, *, is_front_door: bool = False) -> None:
        """`is_front_door`: beyond loopback clients come in there, in clear text; ours do not."""
        self._key = derived_key(token, _USE)
        self._is_front_door = is_front_door
        self._life = secrets.token_bytes(NONCE_BYTES)
        self.audience = ANYONE  # who we are to callers, once we are somebody in particular

    def answer(self, nonce: bytes, audience: str, proof: bytes, peer: str) -> ServerProof:
        """Proves us to a client that has proven itself. Raises InvalidRequest, Unauthenticated."""
        if len(nonce) != NONCE_BYTES:
            raise InvalidRequest("nonce", f"A nonce has {NONCE_BYTES} bytes, not {len(nonce)}.")
        if len(audience) > MAX_AUDIENCE_LETTERS:
            raise InvalidRequest("audience", f"Nobody has a name of {len(audience)} letters.")
        self._check_way(peer)
        said = nonce, audience.encode()
        if not is_mac(proof, self._key, "client", *said):
            raise Unauthenticated(_WRONG_TOKEN)
        if audience not in (ANYONE, self.audience):
            raise Unauthenticated("Whom you look for does not listen here any more.")
        ours = self._nonce(peer)
        return ServerProof(ours, mac(self._key, "server", *said, ours))

    def check(self, peer: str, path: str, given: str | None) -> None:
        """Raises Unauthenticated unless the call has its pass."""
        self._check_way(peer)
        due = _pass(self._key, self._nonce(peer), path)
        if not secrets.compare_digest((given or "").encode(), due.encode()):
            raise Unauthenticated(
                "This call needs a pass: prove that you hold the cluster's token on this very "
                "connection (penstock.v1.Door), with no proxy in between."
            )

    def _check_way(self, peer: str) -> None:
        if self._is_front_door and not is_loopback(host_of_peer(peer)):
            raise Unauthenticated(
                "This is the front door, where internal calls of other machines could be read: they"
                " go to the router's 'internal' address, under TLS."
            )

    def _nonce(self, peer: str) -> bytes:
        return mac(self._life, "connection", peer.encode())


class Challenge:
    """The client's end, for one connection."""

    def __init__(self, token: str, audience: str = ANYONE) -> None:
        self._key = derived_key(token, _USE)
        self.nonce = secrets.token_bytes(NONCE_BYTES)
        self.audience = audience

    @property
    def proof(self) -> bytes:
        return mac(self._key, "client", self.nonce, self.audience.encode())

    def accept(self, nonce: bytes, proof: bytes) -> "Passes":
        """Raises Unauthenticated unless the server has proven to be whom we look for."""
        if not is_mac(proof, self._key, "server", self.nonce, self.audience.encode(), nonce):
            raise Unauthenticated(_WRONG_TOKEN)
        return Passes(self._key, nonce)


@dataclass(slots=True, eq=False)
class Passes:
    """Lets calls in over the connection on which it was earned."""

    _key: bytes = field(repr=False)
    _nonce: bytes = field(repr=False)
    _by_path: dict[str, str] = field(default_factory=dict, repr=False)

    def __getitem__(self, path: str) -> str:
        if (known := self._by_path.get(path)) is None:
            known = self._by_path[path] = _pass(self._key, self._nonce, path)
        return known


def _pass(key: bytes, nonce: bytes, path: str) -> str:
    return _SCHEME + mac(key, "call", nonce, path.encode()).hex()
