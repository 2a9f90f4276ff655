"""Keeps what the planner of a cluster last saw, wanted and did: one entry of the store, for the
next planner, which must know who drains by the planner's word, and for people."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

from cluster.errors import ConfigError
from cluster.store import Store

LEASE_KEY: Final = "planner/lease"
_KEY: Final = "planner/record"
MAX_PAST: Final = 20
_MAX_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """One thing that was done, and why."""

    unix_s: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerRecord:
    holder: str = ""  # who decided
    unix_s: float = 0.0
    interval_s: float = 0.0
    now: str = ""  # prefill+decode workers that serve or start
    wanted: str = ""
    why: str = ""
    terms: Mapping[str, float] = field(default_factory=dict)
    trouble: str = ""  # what keeps it from deciding or doing
    leaving: tuple[str, ...] = ()  # workers that drain by its word
    past: tuple[Deed, ...] = ()  # the last ones, the youngest last

    def as_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, value: bytes) -> "PlannerRecord":
        """Raises ConfigError where it is of another version."""
        try:
            said = json.loads(value[:_MAX_BYTES])
            past = tuple(Deed(**each) for each in said["past"])
            return cls(**{**said, "leaving": tuple(said["leaving"]), "past": past})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"The planner's record cannot be read: {error}.") from error


async def read_record(store: Store) -> PlannerRecord | None:
    """Raises StoreUnavailable and ConfigError."""
    value = await store.get(_KEY)
    return None if value is None else PlannerRecord.from_json(value)


async def write_record(store: Store, record: PlannerRecord) -> None:
    await store.put(_KEY, record.as_json())
