"""Proves who is at the other end of a new connection, before a byte of KV moves.

    writer                          receiver
    hello ─────────────────────────▶
           ◀──────────────────────── hello
    proof ─────────────────────────▶ else it hangs up
           ◀──────────────────────── proof

A hello is magic, version, pool size, a fresh nonce, an incarnation. A proof is an HMAC with the
cluster's key over the role of its sender, the connection (TLS) and both hellos: it can neither be
replayed (both nonces are fresh) nor sent back (the roles differ). Without TLS it protects from
strangers that connect, not from those who can change packets on their way.
"""

import re
import secrets
import struct
from dataclasses import dataclass, field

from cluster.errors import TransferFailed
from cluster.mac import is_mac, mac
from cluster.types import Incarnation
from kv_transfer.tcp.wire import Steps, Wire, receive_exactly, send_all

VERSION = 1
MAGIC = b"penst-kv"
PREFIX = struct.Struct("<8sH")  # the same in every version
REST = struct.Struct("<Q32sB")  # pool size, nonce, bytes of the incarnation
INCARNATION = re.compile(r"[A-Za-z0-9_.-]{1,128}")
PROOF_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    incarnation: Incarnation
    num_bytes: int
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def encode(self) -> bytes:
        name = self.incarnation.encode()
        return PREFIX.pack(MAGIC, VERSION) + REST.pack(self.num_bytes, self.nonce, len(name)) + name


def greet(wire: Wire, own: Hello, key: bytes) -> Steps[Hello]:
    """The writer's end: returns the receiver's hello, proven. Raises TransferFailed, OSError."""
    binding = yield from wire.secure()
    yield from send_all(wire, own.encode())
    theirs = yield from _receive_hello(wire)
    said = binding + own.encode() + theirs.encode()
    yield from send_all(wire, _proof(key, b"writer", said))
    try:
        proof = yield from receive_exactly(wire, PROOF_BYTES)
    except ConnectionResetError as error:
        raise TransferFailed(
            "It does not accept our proof: the cluster's key is another one there; give both "
            "workers the same secrets file."
        ) from error
    _check(proof, key, b"receiver", said)
    return theirs


def welcome(wire: Wire, own: Hello, key: bytes) -> Steps[Hello]:
    """The receiver's end: returns the writer's hello, proven. Raises TransferFailed, OSError."""
    binding = yield from wire.secure()
    theirs = yield from _receive_hello(wire)
    yield from send_all(wire, own.encode())
    said = binding + theirs.encode() + own.encode()
    proof = yield from receive_exactly(wire, PROOF_BYTES)
    _check(proof, key, b"writer", said)
    yield from send_all(wire, _proof(key, b"receiver", said))
    return theirs


def _receive_hello(wire: Wire) -> Steps[Hello]:
    magic, version = PREFIX.unpack((yield from receive_exactly(wire, PREFIX.size)))
    if magic != MAGIC:
        raise TransferFailed("It speaks another protocol: the port is not of a KV transfer.")
    if version != VERSION:
        raise TransferFailed(
            f"It speaks version {version} of the KV wire, we speak {VERSION}: run one version."
        )
    num_bytes, nonce, length = REST.unpack((yield from receive_exactly(wire, REST.size)))
    name = (yield from receive_exactly(wire, length)).decode("ascii", errors="replace")
    if not INCARNATION.fullmatch(name):
        raise TransferFailed("Its hello names no incarnation.")
    return Hello(incarnation=Incarnation(name), num_bytes=num_bytes, nonce=nonce)


def _proof(key: bytes, role: bytes, said: bytes) -> bytes:
    return mac(key, "tcp", role, said)


def _check(proof: bytes, key: bytes, role: bytes, said: bytes) -> None:
    if not is_mac(proof, key, "tcp", role, said):
        raise TransferFailed(
            "It does not have the cluster's key: give both workers the same secrets file."
        )
