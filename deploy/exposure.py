"""Says what of a cluster can be read on its way, or is open to whoever comes: sentences that
`status` and `doctor` repeat as long as it is so."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.addresses import is_loopback_address
from kv_transfer.doors import WITHOUT_TLS

NO_AUTHORITY = "the secrets file holds no authority for TLS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A worker, by how the others reach it."""

    name: str
    address: str
    transports: Sequence[str]


def front_door_text(listens: str, *, asks_keys: bool = False, has_tls: bool = False) -> str:
    """Says what everybody should know of a front door that others can reach, and that lacks one of
    both."""
    if has_tls:
        return f"no authentication, and {listens} is open to other machines"
    if asks_keys:
        return f"no TLS: API keys and prompts can be read on their way to {listens}"
    return f"no TLS and no authentication, and {listens} is open to other machines"


def readable(internal: str, workers: Sequence[Reached], *, can_encrypt: bool) -> Iterator[str]:
    """`internal`: where the router hears calls from other machines; empty: nowhere."""
    apart = [worker for worker in workers if _is_apart(worker.address)]
    if not can_encrypt:
        names = [*(["the router"] if _is_apart(internal) else []), *(one.name for one in apart)]
        if names:
            yield (
                f"calls to {', '.join(names)}, prompts included, can be read on their way:"
                f" {NO_AUTHORITY}"
            )
    for transport in ("tcp", *WITHOUT_TLS):
        if transport == "tcp" and can_encrypt:
            continue
        if names := [one.name for one in apart if transport in one.transports]:
            why = NO_AUTHORITY if transport == "tcp" else "it has no TLS"
            yield f"KV of {', '.join(names)} by {transport} can be read on its way: {why}"


def _is_apart(address: str) -> bool:
    """Tells whether it is dialled from other machines."""
    return bool(address) and not is_loopback_address(address)
