"""Certificates as an operator has them: signed by a CA of his own, in files that are renewed."""

import os
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from router.tls.certificate import TlsFiles

HOSTS = ("localhost", "127.0.0.1", "::1")


class Pair(NamedTuple):
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes


class SigningCa:
    """Signs certificates of servers and of clients."""

    def __init__(self, name: str = "tests CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = name
        self.certificate = self._signed(name, self._key, days=30, is_ca=True)

    def pair(
        self,
        *hosts: str,
        name: str = "penstock tests",
        days: float = 20.0,
        key: Any = None,
        password: bytes = b"",
    ) -> Pair:
        key = key or ec.generate_private_key(ec.SECP256R1())
        sealed = BestAvailableEncryption(password) if password else NoEncryption()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed)
        return Pair(self._signed(name, key, hosts or HOSTS, days=days), pem)

    def _signed(
        self, name: str, key: Any, hosts: tuple[str, ...] = (), *, days: float, is_ca: bool = False
    ) -> bytes:
        begin = datetime.now(UTC) - timedelta(days=2)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named(self._name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(datetime.now(UTC) + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if hosts:
            names = x509.SubjectAlternativeName(list(map(_host, hosts)))
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


def write_pair(folder: Path, pair: Pair, client_ca: bytes | None = None) -> TlsFiles:
    """Puts files in place, each at once, as tools that renew certificates do."""
    files = TlsFiles(
        certificate=folder / "certificate.pem",
        key=folder / "key.pem",
        client_ca=None if client_ca is None else folder / "client-ca.pem",
    )
    put(files.certificate, pair.certificate)
    put(files.key, pair.key)
    if files.client_ca is not None and client_ca is not None:
        put(files.client_ca, client_ca)
    return files


def put(path: Path, content: bytes) -> Path:
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(content)
    fresh.chmod(0o600)
    return fresh.replace(path)


def client_context(
    ca: SigningCa, pair: Pair | None = None, folder: Path = Path()
) -> ssl.SSLContext:
    """What a client believes, and what it shows. `folder`: where its files may lie."""
    context = ssl.create_default_context(cadata=ca.certificate.decode())
    if pair is not None:
        context.load_cert_chain(put(folder / "client.pem", pair.certificate + pair.key))
    return context


def shown_at(address: str) -> bytes:
    """Gives what a server shows, as DER."""
    host, _, port = address.rpartition(":")
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port)), timeout=10))


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.decode())


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)
