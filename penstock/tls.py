"""What a client believes of a server's certificate, and which one it shows itself."""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from penstock.address import SECURED, bare, with_port
from penstock.errors import InvalidRequestError

File = str | Path
MAX_BYTES = 16 << 20


class Dialled(NamedTuple):
    """A cluster as gRPC dials it."""

    address: str  # as people write it, `grpcs://` before it where TLS is spoken
    target: str
    credentials: grpc.ChannelCredentials | None  # None: in clear text
    options: tuple[tuple[str, Any], ...] = ()


def dialled(
    address: str,
    *,
    ca_file: File | None = None,
    cert_file: File | None = None,
    key_file: File | None = None,
    server_name: str | None = None,
) -> Dialled:
    """TLS is spoken where the address says so, or one of the others is given. Raises
    InvalidRequestError for what is no address, and for a file that cannot be used."""
    address = with_port(address)
    given = {"ca_file": ca_file, "cert_file": cert_file, "key_file": key_file}
    if not (address.startswith(SECURED) or server_name or any(given.values())):
        return Dialled(address, address, None)
    if (cert_file is None) != (key_file is None):
        raise _wrong("key_file" if key_file is None else "cert_file", "give both, or neither")
    read = {name: _read(name, path) for name, path in given.items() if path is not None}
    target = bare(address)
    options = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
    return Dialled(SECURED + target, target, _credentials(read), options)


def _credentials(read: Mapping[str, bytes]) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        read.get("ca_file") or _system_roots(), read.get("key_file"), read.get("cert_file")
    )


def _system_roots() -> bytes | None:
    """None: those that gRPC brings."""
    path = ssl.get_default_verify_paths().cafile  # as SSL_CERT_FILE says it, if that does
    return _read("SSL_CERT_FILE", path) if path else None


def _read(name: str, path: File) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _wrong(name, f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES or b"-----BEGIN " not in content:
        raise _wrong(name, f"{path} is no PEM file")
    return content


def _wrong(name: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"'{name}': {why}.", metadata={"field": name})
