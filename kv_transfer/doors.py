"""The transports that exist, by name. One file each; a new one is a line here."""

from collections.abc import Callable

from kv_transfer.shared_memory_transport import SharedMemoryTransport
from kv_transfer.transport import PoolConfig, Transport

TRANSPORTS: dict[str, Callable[[PoolConfig], Transport]] = {
    "shared_memory": SharedMemoryTransport,
}
