"""Says how a command speaks to a front door: in clear text, or under TLS with which files."""

from pathlib import Path
from typing import Any, NamedTuple

from cluster.addresses import Endpoint
from cluster.authority import facts_of
from penstock import Client
from penstock.address import bare
from penstock.cli.local import find_address, known_at


class ClientFiles(NamedTuple):
    """Holds what a person said of certificates; None: nothing."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


def way_in(address_flag: str | None, files: ClientFiles) -> tuple[str, dict[str, Any]]:
    """Finds where clients come in, and what `Client` is given to come in there. Of a cluster that
    was started here the certificate is known: nobody has to name it."""
    address = find_address(address_flag)
    given: dict[str, Any] = files._asdict()
    known = known_at(address)
    shown = Path(known.certificate) if known and known.certificate else None
    if files.ca_file is None and shown is not None and shown.exists():
        host = Endpoint.parse(bare(address)).host
        given |= {"ca_file": shown, "server_name": name_for(shown, host)}
    return address, given


def open_client(address_flag: str | None, api_key: str | None, files: ClientFiles) -> Client:
    """A client that waits for no server: who typed a command wants to know at once."""
    address, given = way_in(address_flag, files)
    return Client(address, api_key=api_key, connect_timeout=0, reconnect_timeout=0, **given)


def name_for(certificate: Path, host: str) -> str | None:
    """Gives the name by which a certificate is believed at a host; None: the host's own."""
    names = facts_of(certificate.read_bytes()).names
    return None if host in names or not names else names[0].replace("*", "any", 1)
