"""The transports that exist, fastest first. One file each; a new one is an entry here.

What a door needs is imported only when a worker opens it: each brings a heavy dependency, and
commands that only know the names start quickly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from cluster.addresses import Endpoint
from cluster.authority import PLAIN, Credentials
from cluster.errors import ConfigError
from cluster.measurements import Measurements

if TYPE_CHECKING:
    from kv_transfer.pool import FilePool, KvPool, PoolConfig
    from kv_transfer.transport import Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorSettings:
    """Holds what a door may need beside the pool."""

    host: str = "127.0.0.1"  # where it listens
    advertise: str = ""  # what others dial; empty: the same
    key: bytes = field(repr=False)  # shared by the cluster: a peer proves that it has it
    tcp_port: int = 0  # 0: any that is free
    num_tcp_streams: int = 4  # to each peer; only large writes use more than one
    credentials: Credentials = PLAIN  # TCP shows them beyond loopback
    allows_nixl_over_tcp: bool = True
    measurements: Measurements | None = None  # None: what is fastest here is not asked


def _shared_memory(pool: "KvPool", settings: DoorSettings) -> "Transport":
    from kv_transfer.shared_memory_transport import SharedMemoryTransport

    return SharedMemoryTransport(_on_host(pool, "shared_memory"), settings.measurements)


def _nixl(pool: "KvPool", settings: DoorSettings) -> "Transport":
    from kv_transfer.nixl.transport import NixlTransport

    return NixlTransport(
        _on_host(pool, "nixl"),
        host=settings.host,
        key=settings.key,
        allows_two_sided=settings.allows_nixl_over_tcp,
    )


def _tcp(pool: "KvPool", settings: DoorSettings) -> "Transport":
    from kv_transfer.tcp.transport import TcpTransport

    return TcpTransport(
        _on_host(pool, "tcp"),
        host=settings.host,
        advertise=settings.advertise,
        port=settings.tcp_port,
        key=settings.key,
        credentials=settings.credentials,
        num_streams=settings.num_tcp_streams,
        measurements=settings.measurements,
    )


def _collective(name: str, pool: "KvPool", settings: DoorSettings) -> "Transport":
    from kv_transfer.collective.transport import CollectiveTransport

    # A group's own sockets tell where they listen: another host would be dialled in vain.
    is_any = Endpoint(settings.host, 0).is_any
    host = settings.advertise if is_any and settings.advertise else settings.host
    return CollectiveTransport(name, pool, host=host, key=settings.key)


def _on_host(pool: "KvPool", door: str) -> "FilePool":
    from kv_transfer.pool import FilePool

    if not isinstance(pool, FilePool):
        raise ConfigError(
            f"The transport '{door}' reaches KV pools in host memory, and this one lies on a "
            "device: name 'nccl' or 'gloo' in 'transports', or set 'device' to 'cpu'."
        )
    return pool


DOORS: dict[str, Callable[["KvPool", DoorSettings], "Transport"]] = {
    "shared_memory": _shared_memory,
    "nixl": _nixl,
    "nccl": partial(_collective, "nccl"),
    "tcp": _tcp,
    "gloo": partial(_collective, "gloo"),
}

# What they move can be read on its way between machines.
WITHOUT_TLS = ("nixl", "nccl", "gloo")


def check_transports(names: Sequence[str]) -> None:
    """Raises ConfigError for a name that is none, and where there are none."""
    unknown = [name for name in names if name not in DOORS]
    if unknown or not names:
        raise ConfigError(
            f"'transports' names {', '.join(unknown) or 'nothing'}: choose from {', '.join(DOORS)}."
        )


def open_pool(config: "PoolConfig", device: str) -> "KvPool":
    """Opens the engine's pool. Raises ConfigError where there is no room, or no such device."""
    if device == "cpu":
        from kv_transfer.pool import FilePool

        return FilePool(config)
    from kv_transfer.device_pool import DevicePool

    return DevicePool(config.incarnation, config.num_bytes, device)


def open_doors(names: Sequence[str], pool: "KvPool", settings: DoorSettings) -> list["Transport"]:
    """Opens doors in the order of preference, whatever the order of the names.

    Raises ConfigError for a name that is none, or whose dependency is missing.
    """
    check_transports(names)
    return [door(pool, settings) for name, door in DOORS.items() if name in names]
