"""TLS between workers: both ends show a certificate of the cluster's own authority."""

import hashlib
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigError

_FIRST_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.S)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files. The authority signs workers of this cluster and nobody else."""

    certificate: Path  # of this worker
    key: Path  # of the certificate, for nobody else to read
    authority: Path  # the certificate of who signed those of all workers


class Tls:
    """Both roles of one worker. Names in certificates are not looked at: who is at the other end
    is proven by the cluster's key, over what `binding` returns."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises ConfigError where a file is missing, or is not what it should be."""
        try:
            self._server = _context(ssl.PROTOCOL_TLS_SERVER, files)
            self._client = _context(ssl.PROTOCOL_TLS_CLIENT, files)
            first = _FIRST_CERTIFICATE.search(files.certificate.read_text(encoding="ascii"))
            self._own = ssl.PEM_cert_to_DER_cert(first[0] if first else "")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"TLS for KV transfer needs a certificate ({files.certificate}), its key "
                f"({files.key}) and the authority's certificate ({files.authority}), as PEM: "
                f"{error}."
            ) from error

    def wrap(self, stream: socket.socket, *, is_server: bool) -> ssl.SSLSocket:
        context = self._server if is_server else self._client
        return context.wrap_socket(stream, server_side=is_server, do_handshake_on_connect=False)

    def binding(self, stream: ssl.SSLSocket, *, is_server: bool) -> bytes:
        """Of both certificates: whoever stands in between has another one at one end."""
        theirs = stream.getpeercert(binary_form=True) or b""
        server, client = (self._own, theirs) if is_server else (theirs, self._own)
        digests = hashlib.sha256(server).digest() + hashlib.sha256(client).digest()
        return hashlib.sha256(digests).digest()


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.authority)
    return context
