"""Says how a peer reaches a pool by NIXL, as text that only our cluster's workers can write.

NIXL's own metadata goes into its parser, in C++: nothing reaches that without the cluster's seal.
"""

import base64
import hmac
import re
from typing import NamedTuple

from cluster.errors import TransferFailed
from cluster.mac import mac
from cluster.types import Incarnation
from kv_transfer.life import ProcessAddress

MAX_ADDRESS_BYTES = 64 * 1024  # NIXL names every device that it could be reached by
_INCARNATION = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_NUM_FIELDS = 11


class NixlAddress(NamedTuple):
    incarnation: Incarnation  # also the name of its NIXL agent
    num_bytes: int  # of its pool
    pool: int  # where in its memory it begins
    greeting_at: int  # where it keeps the next
    process: ProcessAddress
    copies: bool  # by the kernel: UCX there may use them, and is permitted to
    greeting: bytes  # drawn at its start: who can show it is this very process
    metadata: bytes  # of its agent

    def sealed(self, key: bytes) -> str:
        """Writes it as text. `key` is shared by the cluster."""
        process = self.process
        numbers = (self.num_bytes, self.pool, self.greeting_at, process.pid, process.pid_namespace)
        copies = int(self.copies)
        metadata = base64.b64encode(self.metadata).decode("ascii")
        text = ":".join(
            map(
                str,
                (
                    self.incarnation,
                    *numbers,
                    copies,
                    process.boot_id,
                    self.greeting.hex(),
                    metadata,
                ),
            )
        )
        return f"{text}:{_seal(key, text)}"

    @classmethod
    def unsealed(cls, text: str, key: bytes) -> "NixlAddress":
        """Raises TransferFailed for what no worker of this cluster wrote."""
        body, _, seal = text.rpartition(":")
        fields = text.split(":")
        if len(text) > MAX_ADDRESS_BYTES or len(fields) != _NUM_FIELDS or not text.isascii():
            raise TransferFailed(f"'{text[:80]}' is not the address of a KV pool by NIXL.")
        if not hmac.compare_digest(seal, _seal(key, body)):
            raise TransferFailed(
                "An address by NIXL is not sealed with the cluster's key, or was changed on its "
                "way: give both workers the same secrets file."
            )
        return _parse(fields)


def _parse(fields: list[str]) -> NixlAddress:
    """Reads fields of our own writing; they may be another version's."""
    incarnation, *numbers, boot_id, greeting, metadata, _ = fields
    try:
        num_bytes, pool, greeting_at, pid, pid_namespace, copies = map(int, numbers)
        address = NixlAddress(
            Incarnation(incarnation),
            num_bytes,
            pool,
            greeting_at,
            ProcessAddress(pid, pid_namespace, boot_id),
            copies == 1,
            bytes.fromhex(greeting),
            base64.b64decode(metadata, validate=True),
        )
    except ValueError as error:
        raise TransferFailed(f"An address by NIXL is of another version: {error}.") from error
    if not _INCARNATION.fullmatch(incarnation) or min(num_bytes, pool, greeting_at, pid) < 1:
        raise TransferFailed(f"'{incarnation[:80]}' has no address by NIXL that makes sense.")
    return address


def _seal(key: bytes, text: str) -> str:
    return mac(key, "nixl", text.encode("ascii")).hex()
