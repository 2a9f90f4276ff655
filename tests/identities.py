"""What processes show to each other, for tests: on loopback, too, and what is wrong with it."""

import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from cluster.addresses import outward
from cluster.authority import Authority, Credentials, TlsIdentity, create_authority, issue

# A host of this machine's that is not written as a loopback: there TLS is spoken by itself.
BEYOND_LOOPBACK = (*outward(), socket.gethostname())[0]


class Shown(Credentials):
    """Shows one identity wherever it is."""

    def __init__(self, identity: TlsIdentity) -> None:
        super().__init__()
        self._shown = identity

    def at(self, address: str) -> TlsIdentity | None:
        return self._shown


def shown(authority: Authority) -> Shown:
    return Shown(issue(authority))


def half_trusted(authority: Authority) -> Shown:
    """Believes the authority, and shows a certificate of another."""
    return Shown(replace(issue(create_authority()), authority=authority.certificate.encode()))


def of_authority_from(begin: timedelta, *, life: timedelta) -> Shown:
    """Of one that was drawn `begin` from now, by a clock that was right then."""
    drawn = datetime.now(UTC) + begin
    return Shown(issue(create_authority(now=drawn, life=life), now=drawn))
