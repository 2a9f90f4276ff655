"""Finds what is to be done so that what runs is what is wanted. Pure: says it, and does nothing."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cluster.wire_version import are_neighbors
from deploy.placement import Wanted
from deploy.plan import Part

# All of a cluster agree on these: one that differs could not join the others.
SHARED: Final = (
    "checkpoint",
    "weights.digest",
    "model",
    "hash_grain",
    "store",
    "router",
    "cluster",
)
_WIRE: Final = "wire_version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """Holds what was set aside for one process, wherever it is."""

    name: str
    digest: str  # of its order and of what was set aside


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Lists what is to be done, by name of process; what is changed is drained first, and started
    anew."""

    start: tuple[Wanted, ...] = ()
    keep: tuple[Wanted, ...] = ()
    change: tuple[Wanted, ...] = ()
    stop: tuple[str, ...] = ()


def steps(wanted: Sequence[Wanted], running: Iterable[Placing], *, restart: bool = False) -> Steps:
    """Compares by name. `restart`: what is as it should be is changed, too."""
    known = {placing.name: placing.digest for placing in running}
    names = {each.name for each in wanted}
    there = [each for each in wanted if each.name in known]
    keep = [each for each in there if known[each.name] == each.digest and not restart]
    return Steps(
        start=tuple(each for each in wanted if each.name not in known),
        keep=tuple(keep),
        change=tuple(each for each in there if each not in keep),
        stop=tuple(name for name in sorted(known) if name not in names),
    )


def in_turn(
    change: Sequence[Wanted], before: Mapping[str, str], serving: Collection[str]
) -> list[Wanted]:
    """The order in which to replace them. `before`: what they were told, as JSON, of those that
    say so; `serving`: the workers that requests are sent to.

    A router speaks to workers of its wire version and of the one before: so it goes first on the
    way up and last on the way down. Workers that do not serve are mended before others are
    touched, and roles take turns, so that workers of one version remain in both.
    """
    goes_up = any(_is_older(before.get(each.name), each.order.wire_version) for each in change)
    routers = [each for each in change if each.order.part is Part.ROUTER]
    workers = _alternating([each for each in change if each.order.part is not Part.ROUTER])
    workers.sort(key=lambda each: each.name in serving)
    return [*routers, *workers] if goes_up else [*workers, *routers]


def _alternating(workers: Sequence[Wanted]) -> list[Wanted]:
    """The first of each role, then the second of each."""
    turns: Counter[Part] = Counter()
    numbered = []
    for each in workers:
        numbered.append((turns[each.order.part], each))
        turns[each.order.part] += 1
    return [each for _, each in sorted(numbered, key=lambda pair: pair[0])]


def differences(before: str, after: str) -> list[str]:
    """Lists the keys that two orders say differently, each with both values."""
    old, new = _flat(json.loads(before)), _flat(json.loads(after))
    return [
        f"{key}: {_value(old.get(key))} -> {_value(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def divides(before: str, after: str) -> list[str]:
    """The differences with which both could not be of one cluster at a time."""
    shared = [*SHARED, *(() if _may_meet(before, after) else (_WIRE,))]
    return [line for line in differences(before, after) if line.partition(":")[0] in shared]


def _may_meet(before: str, after: str) -> bool:
    old, new = _wire_version(before), _wire_version(after)
    return old is None or new is None or are_neighbors(old, new)


def _is_older(before: str | None, version: int) -> bool:
    known = None if before is None else _wire_version(before)
    return known is not None and known < version


def _wire_version(order: str) -> int | None:
    """None: it says none, as orders did once."""
    version: int | None = json.loads(order).get(_WIRE)
    return version


def _flat(order: Mapping[str, Any]) -> dict[str, Any]:
    weights = {f"weights.{key}": each for key, each in (order.get("weights") or {}).items()}
    own = {key: each for key, each in order.items() if key not in ("config", "weights")}
    return {**own, **weights, **order.get("config", {})}


def _value(value: Any) -> str:
    return json.dumps(value)
