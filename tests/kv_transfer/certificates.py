"""Certificates of a small authority, made with nothing but Python: a bare machine has no openssl.

ECDSA over P-256 and just enough DER. For tests only: nothing here runs in constant time.
"""

import base64
import hashlib
import itertools
import secrets
from pathlib import Path

from kv_transfer.tcp_tls import TlsFiles

P = 2**256 - 2**224 + 2**192 + 2**96 - 1
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
GENERATOR = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
Point = tuple[int, int] | None

EC_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")
PRIME256V1 = bytes.fromhex("06082a8648ce3d030107")
ECDSA_SHA256 = bytes.fromhex("06082a8648ce3d040302")
COMMON_NAME = bytes.fromhex("0603550403")
BASIC_CONSTRAINTS = bytes.fromhex("0603551d13")


def add(a: Point, b: Point) -> Point:
    if a is None or b is None:
        return a or b
    if a[0] == b[0] and (a[1] + b[1]) % P == 0:
        return None
    if a == b:
        slope = (3 * a[0] * a[0] - 3) * pow(2 * a[1], -1, P) % P
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, P) % P
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def multiply(scalar: int, point: Point = GENERATOR) -> tuple[int, int]:
    total: Point = None
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point = add(point, point)
        scalar >>= 1
    assert total is not None
    return total


def der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body)
    if size < 128:
        return bytes([tag, size]) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 128 + len(length)]) + length + body


def sequence(*parts: bytes) -> bytes:
    return der(0x30, *parts)


def integer(number: int) -> bytes:
    return der(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def bits(data: bytes) -> bytes:
    return der(0x03, b"\0", data)


def name(text: str) -> bytes:
    return sequence(der(0x31, sequence(COMMON_NAME, der(0x0C, text.encode()))))


def pem(kind: str, data: bytes) -> str:
    text = base64.encodebytes(data).decode()
    return f"-----BEGIN {kind}-----\n{text}-----END {kind}-----\n"


class Key:
    def __init__(self) -> None:
        self.secret = secrets.randbelow(ORDER - 1) + 1
        x, y = multiply(self.secret)
        self.public = b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big")

    def sign(self, data: bytes) -> bytes:
        hashed = int.from_bytes(hashlib.sha256(data).digest(), "big")
        nonce = secrets.randbelow(ORDER - 1) + 1
        r = multiply(nonce)[0] % ORDER
        s = pow(nonce, -1, ORDER) * (hashed + r * self.secret) % ORDER
        return sequence(integer(r), integer(s))

    def pem(self) -> str:
        secret = der(0x04, self.secret.to_bytes(32, "big"))
        rest = der(0xA0, PRIME256V1) + der(0xA1, bits(self.public))
        return pem("EC PRIVATE KEY", sequence(integer(1), secret, rest))


class Authority:
    def __init__(self, folder: Path, called: str = "authority") -> None:
        self._folder = folder
        self._name = called
        self._key = Key()
        self._serials = itertools.count(1)
        self.path = folder / f"{called}.pem"
        self.path.write_text(self._certificate(called, self._key, is_authority=True))

    def issue(self, subject: str) -> TlsFiles:
        key = Key()
        stem = self._folder / f"{self._name}-{subject}"
        certificate, secret = stem.with_suffix(".crt"), stem.with_suffix(".key")
        certificate.write_text(self._certificate(subject, key, is_authority=False))
        secret.write_text(key.pem())
        return TlsFiles(certificate=certificate, key=secret, authority=self.path)

    def _certificate(self, subject: str, key: Key, *, is_authority: bool) -> str:
        flags = sequence(der(0x01, b"\xff")) if is_authority else sequence()
        constraints = sequence(BASIC_CONSTRAINTS, der(0x01, b"\xff"), der(0x04, flags))
        body = sequence(
            der(0xA0, integer(2)),
            integer(next(self._serials)),
            sequence(ECDSA_SHA256),
            name(self._name),
            sequence(der(0x18, b"20200101000000Z"), der(0x18, b"21200101000000Z")),
            name(subject),
            sequence(sequence(EC_PUBLIC_KEY, PRIME256V1), bits(key.public)),
            der(0xA3, sequence(constraints)),
        )
        signed = sequence(body, sequence(ECDSA_SHA256), bits(self._key.sign(body)))
        return pem("CERTIFICATE", signed)
