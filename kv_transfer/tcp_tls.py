"""TLS between workers: both ends show a certificate of the cluster's own authority."""

import hashlib
import os
import socket
import ssl

from cluster.authority import Credentials, TlsIdentity


class Tls:
    """Both roles of one worker. Names in certificates are not looked at: who is at the other end
    is proven by the cluster's key, over what `binding` returns."""

    def __init__(self, identity: TlsIdentity) -> None:
        self._server = _context(ssl.PROTOCOL_TLS_SERVER, identity)
        self._client = _context(ssl.PROTOCOL_TLS_CLIENT, identity)
        self._own = ssl.PEM_cert_to_DER_cert(identity.certificate.decode())

    def wrap(self, stream: socket.socket, *, is_server: bool) -> ssl.SSLSocket:
        context = self._server if is_server else self._client
        return context.wrap_socket(stream, server_side=is_server, do_handshake_on_connect=False)

    def binding(self, stream: ssl.SSLSocket, *, is_server: bool) -> bytes:
        """Of both certificates: whoever stands in between has another one at one end."""
        theirs = stream.getpeercert(binary_form=True) or b""
        server, client = (self._own, theirs) if is_server else (theirs, self._own)
        digests = hashlib.sha256(server).digest() + hashlib.sha256(client).digest()
        return hashlib.sha256(digests).digest()


class TlsWhereDue:
    """Beyond loopback, where the cluster has an authority."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._tls: Tls | None = None

    def at(self, endpoint: str) -> Tls | None:
        """For who listens there, and who dials it."""
        identity = self._credentials.at(endpoint)
        if identity is not None and self._tls is None:
            self._tls = Tls(identity)
        return None if identity is None else self._tls


def _context(protocol: int, identity: TlsIdentity) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=identity.authority.decode())
    # A file is all that this takes: one without a name, that no other process can open by one.
    with os.fdopen(os.memfd_create("penstock identity"), "wb") as file:
        file.write(identity.certificate + identity.key)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context
