"""Tells who changed the policy, when, from where and why: the last changes, kept with what is in
force, so that all routers tell the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAX_CHANGES: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Names whose change it is. The name is his own word: who he is has not been proven, only that
    he holds the cluster's secret."""

    name: str
    address: str = ""  # that he called from; empty: the router did it by itself


ROUTER: Final = Author(name="router")


@dataclass(frozen=True, slots=True, kw_only=True)
class PastChange:
    """One change: the document that it is about, in force or on trial since then."""

    at_s: float  # of the Unix epoch
    number: int  # of the generation
    name: str  # of the policy
    digest: str
    why: str
    author: Author


def with_change(history: Sequence[PastChange], change: PastChange) -> tuple[PastChange, ...]:
    """The oldest go."""
    return (*history, change)[-MAX_CHANGES:]
