"""TLS of calls between processes: both ends show a certificate of the cluster's own authority; why
a connection did not come about, in words that say what differs; and how files become what is shown.
"""

import os
import ssl
import time
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio

from cluster.authority import NAME, TlsIdentity
from cluster.errors import PenstockError, Unauthenticated, WorkerLost
from cluster.status import from_rpc_error

TARGET: Final = ("grpc.ssl_target_name_override", NAME)

_SETTLED_S: Final = 0.1
_SAME_FILE = "give both the same secrets file"
_INTERNAL = "internal calls go to the router's 'internal' address"


def server_credentials(identity: TlsIdentity) -> grpc.ServerCredentials:
    pair = (identity.key, identity.certificate)
    return grpc.ssl_server_credentials([pair], identity.authority, require_client_auth=True)


def followed_credentials(
    current: Callable[[], grpc.ServerCertificateConfiguration], *, asks_clients: bool
) -> grpc.ServerCredentials:
    """Makes the credentials of a server that shows, in each handshake, what is current then.
    `current` is called on gRPC's own threads."""
    shown = current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        if (now := current()) is shown:
            return None
        # gRPC asks under a lock, and frees what it showed before: under a handshake that has asked
        # before us and has yet to take it, which ends the process. So it is given the time to.
        time.sleep(_SETTLED_S)
        shown = now
        return now

    fetch: Any = changed  # its stubs do not know that None says: as before
    return grpc.dynamic_ssl_server_credentials(
        shown, fetch, require_client_authentication=asks_clients
    )


def certificate_configuration(
    certificate: bytes, key: bytes, client_ca: bytes | None
) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)


def channel_credentials(identity: TlsIdentity) -> grpc.ChannelCredentials:
    """Makes the credentials of a channel with the option `TARGET`."""
    return grpc.ssl_channel_credentials(
        identity.authority, private_key=identity.key, certificate_chain=identity.certificate
    )


def from_call(error: grpc.aio.AioRpcError, *, is_tls: bool) -> PenstockError:
    """The error behind a failed call to one of our processes."""
    failure = from_rpc_error(error)
    if not isinstance(failure, WorkerLost):
        return failure
    return why_unconnected(str(error.details()), is_tls=is_tls) or failure


def why_unconnected(details: str, *, is_tls: bool) -> PenstockError | None:
    """Reads why a connection was never made from what gRPC says; None: it is not about TLS."""
    if "failed to connect" not in details:
        return None
    if "handshake failed" in details or "erification" in details:
        return Unauthenticated(_of_handshake(details))
    if "Socket closed" not in details:
        return None
    if is_tls:
        return WorkerLost(
            "It hung up as soon as it saw our certificate: another authority has signed that"
            f" ({_SAME_FILE}), or by its clock it is not valid; or it has just ended."
        )
    return WorkerLost(
        "It hung up as soon as we spoke to it without TLS: it may want TLS, as processes beyond"
        f" loopback do whose secrets file holds an authority ({_SAME_FILE}), or be a front door"
        f" under TLS ({_INTERNAL}); or it has just ended."
    )


def _of_handshake(details: str) -> str:
    if "WRONG_VERSION_NUMBER" in details:
        return (
            f"It speaks no TLS there: it is a front door ({_INTERNAL}), or its secrets file holds"
            f" no authority ({_SAME_FILE})."
        )
    for symptom in ("certificate has expired", "certificate is not yet valid"):
        if symptom in details:
            return (
                f"By our clock its {symptom}: set the clocks of both machines, else draw new"
                " secrets for all processes."
            )
    return (
        f"Its certificate was signed by another authority: {_SAME_FILE}; or it is a front door"
        f" under TLS ({_INTERNAL})."
    )


def secure_channel(address: str, identity: TlsIdentity | None, options: Any) -> grpc.aio.Channel:
    """Opens a channel, in clear text without an identity."""
    if identity is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, channel_credentials(identity), [*options, TARGET])


def server_context(identity: TlsIdentity) -> ssl.SSLContext:
    """Makes what a server beside gRPC's shows, and asks its callers to show."""
    return _context(ssl.PROTOCOL_TLS_SERVER, identity)


def client_context(identity: TlsIdentity) -> ssl.SSLContext:
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity)


def _context(protocol: int, identity: TlsIdentity) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=identity.authority.decode())
    load_pair(context, identity.certificate, identity.key)
    return context


def load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Has a context show a certificate, from memory. Raises ssl.SSLError where they are no pair, or
    the key has a password."""
    # A file is all that this takes: one without a name, that no other process can open by one.
    with os.fdopen(os.memfd_create("penstock identity"), "wb") as file:
        file.write(certificate + b"\n" + key)
        file.flush()
        # Without a password given it would ask for one on the terminal.
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")
