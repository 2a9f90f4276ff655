"""The authority of a cluster: what its secrets file holds so that each of its processes can make a
certificate for itself and tell the others' from strangers'; and what anybody's certificate says.
The one door to `cryptography`.

A process signs its own, in memory, at its start: nothing but the secrets file is distributed, and
nothing is asked of anybody. All have one name, whatever address they listen at. What does not leave
the machine makes nothing for it.
"""

import contextlib
import logging
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cluster.addresses import is_loopback_address
from cluster.errors import ConfigError

NAME: Final = "penstock.internal"  # in every certificate: who is who is proven by `cluster.proof`
LIFE: Final = timedelta(days=3650)
# Machines whose clocks are behind the one that drew the authority accept it all the same.
BACKDATED: Final = timedelta(days=1)
WARNED: Final = timedelta(days=30)  # before its end
_REMEDY: Final = "draw a new file with 'penstock secrets', for all processes."

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Holds what signs the certificates of a cluster, as PEM."""

    certificate: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsIdentity:
    """Holds what one process shows to the others, and whom it believes; as PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes


class Credentials:
    """Makes what this process shows beyond loopback: an identity, when it is first needed."""

    def __init__(self, authority: Authority | None = None) -> None:
        self._authority = authority
        self._identity: TlsIdentity | None = None

    @property
    def can_encrypt(self) -> bool:
        return self._authority is not None

    def covers(self, address: str) -> bool:
        """Tells whether TLS is spoken there, by what is written alone: both ends must come to the
        same."""
        return self._authority is not None and not is_loopback_address(address)

    def at(self, address: str) -> TlsIdentity | None:
        """Gives the identity of who listens there, and of who dials it; None: without TLS. Raises
        ConfigError where the authority is none."""
        if self._authority is None or not self.covers(address):
            return None
        if self._identity is None:
            self._identity = issue(self._authority)
        return self._identity


PLAIN: Final = Credentials()  # shows nothing, wherever


def create_authority(*, life: timedelta = LIFE, now: datetime | None = None) -> Authority:
    from cryptography import x509

    key = _new_key()
    name = _named(f"penstock authority {secrets.token_hex(4)}")  # strangers are told apart
    now = now or datetime.now(UTC)
    builder = _builder(name, name, key, now - BACKDATED, now + life)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    return Authority(certificate=_signed(builder, key), key=_pem(key).decode())


def issue(authority: Authority, *, now: datetime | None = None) -> TlsIdentity:
    """A certificate for this process, as long as the authority's own: whoever can take its key
    from this process's memory can take the authority's, so an earlier end would protect nobody.

    Raises ConfigError where the authority is none, or has ended.
    """
    from cryptography import x509

    ours, signing = _pair(authority)
    begin, end = ours.not_valid_before_utc, ours.not_valid_after_utc
    left = end - (now or datetime.now(UTC))
    if left < timedelta():
        raise ConfigError(f"The authority in the secrets file ended on {end:%d %B %Y}: {_REMEDY}")
    if left < WARNED:
        logger.warning("the authority in the secrets file ends on %s: %s", f"{end:%d %B}", _REMEDY)
    key = _new_key()
    builder = _builder(_named(NAME), ours.subject, key, begin, end)
    names = x509.SubjectAlternativeName([x509.DNSName(NAME)])
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    builder = builder.add_extension(names, critical=False).add_extension(signer, critical=False)
    return TlsIdentity(
        certificate=_signed(builder, signing).encode(),
        key=_pem(key),
        authority=authority.certificate.encode(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """Says what a certificate of somebody else's making is good for."""

    names: tuple[str, ...]  # of hosts, and their addresses
    begins: datetime
    ends: datetime
    has_usual_key: bool  # RSA, or one of the curves that all TLS libraries know


def facts_of(certificate: bytes) -> CertificateFacts:
    """Reads the first certificate of a PEM. Raises ValueError where there is none."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    found = x509.load_pem_x509_certificates(certificate)[0]
    names: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound):
        told = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += told.get_values_for_type(x509.DNSName)
        names += map(str, told.get_values_for_type(x509.IPAddress))
    key = found.public_key()
    curves = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
    is_usual_curve = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, curves)
    return CertificateFacts(
        names=tuple(names),
        begins=found.not_valid_before_utc,
        ends=found.not_valid_after_utc,
        has_usual_key=isinstance(key, rsa.RSAPublicKey) or is_usual_curve,
    )


def _pair(authority: Authority) -> tuple[Any, Any]:
    """The certificate and the key that it is of."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    ours: Any = None
    signing: Any = None
    with contextlib.suppress(ValueError, TypeError):  # their messages may quote the key
        ours = x509.load_pem_x509_certificate(authority.certificate.encode())
        signing = load_pem_private_key(authority.key.encode(), password=None)
    if signing is None or signing.public_key() != ours.public_key():
        raise ConfigError(
            f"The authority in the secrets file is no certificate with its key, as PEM: {_REMEDY}"
        )
    return ours, signing


def _new_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    pem: bytes = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    return pem


def _named(text: str) -> Any:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: Any, issuer: Any, key: Any, begin: datetime, end: datetime) -> Any:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _signed(builder: Any, key: Any) -> str:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    pem: bytes = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return pem.decode()
