"""What the doctor says: one finding a check and a subject, with what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


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
