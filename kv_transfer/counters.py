"""What one end of the transfers has done so far, as numbers for a load report."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from kv_transfer.transfer import State


class Reason(StrEnum):
    """Why a hand-over failed."""

    CANCELLED = "cancelled"
    LAPSED = "lapsed"
    WRITER_DIED = "writer_died"
    WRITER_CLOSED = "writer_closed"
    PROTOCOL = "protocol"
    SHORT = "short"
    DIGEST = "digest"


@dataclass(slots=True, eq=False)
class TransferCounters:
    num_verified: int = 0
    num_bytes: int = 0
    write_s: float = 0.0
    verify_s: float = 0.0
    num_fenced: int = 0  # messages of epochs that were over, ignored
    failures: Counter[tuple[State, Reason]] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, float]:
        failures = {
            f"transfer_failures.{phase}.{reason}": float(count)
            for (phase, reason), count in self.failures.items()
        }
        return {
            "transfers_verified": float(self.num_verified),
            "transfer_bytes": float(self.num_bytes),
            "transfer_write_s": self.write_s,
            "transfer_verify_s": self.verify_s,
            "transfer_fenced": float(self.num_fenced),
            **failures,
        }
