"""A process as the doctor found it: what the checks look at. Nothing here asks anyone."""

from dataclasses import dataclass

from cluster.facts import ProcessFacts
from cluster.types import Member


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    name: str
    address: str = ""
    member: Member | None = None  # None: a router, or this command itself
    not_serving: str = ""  # why the router sends it nothing; empty: it serves
    facts: ProcessFacts | None = None  # None: it did not answer
    problem: str = ""  # why there are no facts
    round_trip_s: float = 0.0
    clock_ahead_s: float = 0.0  # of ours, by the middle of the round trip
    memory_bytes_per_s: float = 0.0  # of its machine, by one thread; 0: not measured
    num_free_blocks: int = 0

    @property
    def is_here(self) -> bool:
        """This command itself: part of the cluster by its versions and its secrets file."""
        return not self.address


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """Bytes that one worker fetched from another, measured where they arrived."""

    transport: str
    num_bytes: int
    seconds: float  # from asking the source to verified
    write_s: float  # of these: the source's writes, one after another

    @property
    def bytes_per_s(self) -> float:
        return self.num_bytes / self.write_s if self.write_s > 0 else 0.0
