"""Holds what the doctor says: one finding a check and a subject, with what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cluster.facts import ProcessFacts
from cluster.types import Member


class Severity(StrEnum):
    """Orders findings: later is worse."""

    PASS = "pass"
    WARN = "warn"  # it works, worse than it could or less safely
    FAIL = "fail"  # it does not work, or must not be used like that


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    severity: Severity
    check: str  # its name, for scripts
    subject: str  # a worker, a pair, a machine
    what: str  # a sentence without its full stop
    fix: str = ""  # a sentence; empty where there is nothing to do


def passed(check: str, subject: str, what: str) -> Finding:
    return Finding(severity=Severity.PASS, check=check, subject=subject, what=what)


def warned(check: str, subject: str, what: str, fix: str) -> Finding:
    return Finding(severity=Severity.WARN, check=check, subject=subject, what=what, fix=fix)


def failed(check: str, subject: str, what: str, fix: str) -> Finding:
    return Finding(severity=Severity.FAIL, check=check, subject=subject, what=what, fix=fix)


def worst(severities: Iterable[Severity]) -> Severity:
    order = list(Severity)
    return max(severities, key=order.index, default=Severity.PASS)


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
