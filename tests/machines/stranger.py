"""Dials addresses as one does who has no secrets, as a program. It prints those that let it say
anything, or show no certificate of the authority. Arguments: the secrets file, the addresses."""

import socket
import ssl
import sys
from pathlib import Path

from cluster.addresses import Endpoint
from cluster.secrets import load_secrets

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
ALERT = b"\x15\x03"
WAIT_S = 10.0


def is_shut(address: str, context: ssl.SSLContext) -> bool:
    endpoint = Endpoint.parse(address)
    with socket.create_connection(endpoint, WAIT_S) as plain:
        plain.sendall(PREFACE)
        if not _hangs_up(plain):
            return False
    # It shows who it is, and wants to see the same of us.
    with context.wrap_socket(socket.create_connection(endpoint, WAIT_S)) as encrypted:
        return _hangs_up(encrypted)


def _hangs_up(connection: socket.socket) -> bool:
    try:
        said = connection.recv(4096)
    except TimeoutError:
        return False
    except OSError:  # an alert, or a reset
        return True
    return not said or said.startswith(ALERT)


def main() -> None:
    secrets_file, *addresses = sys.argv[1:]
    authority = load_secrets(Path(secrets_file)).authority
    assert authority is not None
    context = ssl.create_default_context(cadata=authority.certificate)
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    for address in addresses:
        try:
            if not is_shut(address, context):
                print(address)
        except OSError as error:
            print(address, error)


if __name__ == "__main__":
    main()
