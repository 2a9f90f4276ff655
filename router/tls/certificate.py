"""What the front doors show their callers, read from files: a certificate, its key, and perhaps who
signs the certificates of clients. All of it fits together, or there is nothing."""

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from cluster.authority import CertificateFacts, facts_of
from cluster.errors import ConfigError
from cluster.tls import load_pair

MAX_BYTES: Final = 1 << 20  # of one file: a chain has a few kilobytes, a bundle of CAs some hundred
_ALPN: Final = "http/1.1"  # gRPC's own does not ask the context


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Names what both front doors show, as PEM."""

    certificate: Path  # and who signed it, if others did between it and a root; followed
    """Where clients are to know whom they talk to, and nobody else is to read what they say."""
    key: Path  # of the certificate, RSA or EC, without a password
    """With the certificate."""
    client_ca: Path | None = None  # who signs clients' certificates; null: they need none
    """Where only clients with a certificate are to be let in."""


class TlsTexts(NamedTuple):
    """What the files say at one moment."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCertificate:
    """Holds what is shown in a handshake, and who is let in."""

    texts: TlsTexts = field(repr=False)
    facts: CertificateFacts
    context: ssl.SSLContext  # the same, for who does not speak gRPC

    @property
    def asks_clients(self) -> bool:
        return self.texts.client_ca is not None

    def left_s(self, now: datetime | None = None) -> float:
        """Counts the seconds until it ends; below 0: it has."""
        return (self.facts.ends - (now or datetime.now(UTC))).total_seconds()


def read_texts(files: TlsFiles) -> TlsTexts:
    """Raises ConfigError."""
    return TlsTexts(
        _read("certificate", files.certificate),
        _read("key", files.key),
        _read("client_ca", files.client_ca) if files.client_ca else None,
    )


def served_certificate(texts: TlsTexts, files: TlsFiles) -> ServedCertificate:
    """Makes what is served of what the files say. Raises ConfigError: a sentence without a letter
    of a key."""
    facts = _facts(texts, files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([_ALPN])
    try:
        load_pair(context, texts.certificate, texts.key)
    except ssl.SSLError as error:
        raise ConfigError(_why_no_pair(error, files)) from error
    if texts.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cadata=texts.client_ca.decode())
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"'tls.client_ca' {files.client_ca} holds no certificate as PEM: give that of who"
                " signs your clients'."
            ) from error
    return ServedCertificate(texts=texts, facts=facts, context=context)


def load_certificate(files: TlsFiles) -> ServedCertificate:
    """Raises ConfigError."""
    return served_certificate(read_texts(files), files)


def _read(key: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"'tls.{key}' {path} cannot be read: {error.strerror}. Give a PEM file that this user"
            " may read."
        ) from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"'tls.{key}' {path} has more than {MAX_BYTES} bytes: give a PEM file.")
    return content


def _facts(texts: TlsTexts, files: TlsFiles) -> CertificateFacts:
    try:
        facts = facts_of(texts.certificate)
    except ValueError as error:
        raise ConfigError(
            f"'tls.certificate' {files.certificate} holds no certificate as PEM: it begins with"
            " '-----BEGIN CERTIFICATE-----'."
        ) from error
    if not facts.has_usual_key:
        raise ConfigError(
            f"The key of 'tls.certificate' {files.certificate} is of a kind that not all clients"
            " know: give one with an RSA key, or with an EC key on P-256, P-384 or P-521."
        )
    return facts


def _why_no_pair(error: ssl.SSLError, files: TlsFiles) -> str:
    if error.reason in _OF_MISMATCH:
        return (
            f"'tls.key' {files.key} is not the key of 'tls.certificate' {files.certificate}: give"
            " both as they were made, the certificate first in its file."
        )
    return (
        f"'tls.key' {files.key} holds no key as PEM that can be used without a password: give one"
        f" that can ('openssl pkey -in {files.key}' asks for it, and prints one)."
    )


_OF_MISMATCH: Final = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"})
