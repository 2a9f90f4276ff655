"""The transports that exist, fastest first. One file each; a new one is an entry here.

A door's module is imported only when a worker names it: each brings a heavy dependency.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster.errors import ConfigError
from kv_transfer.pool import FilePool
from kv_transfer.transport import Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorSettings:
    """What a door may need beside the pool."""

    host: str = "127.0.0.1"  # where it listens
    key: bytes = field(repr=False)  # shared by the cluster: a peer proves that it has it


def _shared_memory(pool: FilePool, settings: DoorSettings) -> Transport:
    from kv_transfer.shared_memory_transport import SharedMemoryTransport

    return SharedMemoryTransport(pool)


DOORS: dict[str, Callable[[FilePool, DoorSettings], Transport]] = {
    "shared_memory": _shared_memory,
}


def open_doors(names: Sequence[str], pool: FilePool, settings: DoorSettings) -> list[Transport]:
    """In the order of preference, whatever the order of the names.

    Raises ConfigError for a name that is none, or whose dependency is missing.
    """
    unknown = [name for name in names if name not in DOORS]
    if unknown or not names:
        raise ConfigError(
            f"'transports' names {', '.join(unknown) or 'nothing'}: choose from {', '.join(DOORS)}."
        )
    return [door(pool, settings) for name, door in DOORS.items() if name in names]
