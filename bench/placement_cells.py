"""The cells in which placement rules are compared: what comes, to which workers, over which links,
how fast; and the rules that ship."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from bench.searched_traffic import SEARCHED
from penstock.cli.traffic import load_traffic
from router.policies.priced import Priced
from router.policies.registry import RULES
from router.policies.rule import Rule
from simulator.adversarial import ADVERSARIAL
from simulator.comparison import FETCHING, without_fetch
from simulator.trace import Trace

CACHES = (300_000, 3_000_000)  # tokens a worker: with evictions, and hardly any
LINKS: Mapping[str, float | None] = {"20GB/s": 20e9, "10Gbit/s": 1.25e9, "none": None}
RATES = (0.5, 1.0, 2.0)
_TALKS = (
    "conversations: {num_sessions: 300, rate: 2.2, num_turns: 4, system_tokens: 1024,"
    " turn_tokens: 4000, output_tokens: 300, think_s: 20.0}"
)
_BURST = (
    "fan_outs: {num_prompts: 1, num_siblings: 32, shared_tokens: 16384, own_tokens: 512,"
    " output_tokens: 50, grain: 512}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellTraffic:
    """What comes, and to workers of which kind. At its own rate a good rule keeps eight workers
    busy by two thirds, and most requests within the target."""

    make: Callable[[int], Trace] | None = None  # by its seed
    workload: str | None = None
    trace: Path | None = None
    limit: int | None = None
    ttft_s: float = 2.0  # target in the full simulator
    rates: tuple[float, ...] = RATES
    slowness: float = 1.0  # of one worker
    is_slowness_known: bool = True
    noise: float = 0.0

    def load(self, seed: int) -> Trace:
        if self.make is not None:
            return self.make(seed)
        return load_traffic(self.trace, self.workload, seed=seed, limit=self.limit)


_TARGETS = {"giant_prefix": 12.0, "bursts": 5.0, "trickle": 1.0, "overtaking_turns": 5.0}
TRAFFIC: Mapping[str, CellTraffic] = {
    "burst of 32": CellTraffic(workload=_BURST, ttft_s=5.0, rates=(1.0,)),
    **{name: CellTraffic(workload=name, ttft_s=_TARGETS.get(name, 2.0)) for name in ADVERSARIAL},
    "rotation of one": CellTraffic(workload="rotation: {num_prefixes: 40, rate: 20.0}"),
    "one slow, known": CellTraffic(workload=_TALKS, slowness=3.0),
    "one slow, unknown": CellTraffic(workload=_TALKS, slowness=3.0, is_slowness_known=False),
    "noisy": CellTraffic(workload=_TALKS, noise=0.6),
    "shipped trace": CellTraffic(ttft_s=4.0),
    **{name: CellTraffic(make=make, ttft_s=12.0) for name, make in SEARCHED.items()},
}


@dataclass(frozen=True, slots=True)
class Cell:
    traffic: str
    cache_tokens: int
    link: str
    rate: float
    makes: CellTraffic = field(repr=False)

    @property
    def bytes_per_s(self) -> float | None:
        return LINKS[self.link]

    @property
    def names(self) -> tuple[str, str, str, str]:
        return self.traffic, f"{self.cache_tokens / 1e6:g}M", self.link, f"{self.rate:g}"


def cells(
    traffic: Mapping[str, CellTraffic],
    *,
    caches: tuple[int, ...] = CACHES,
    links: tuple[str, ...] = tuple(LINKS),
    rates: tuple[float, ...] = RATES,
) -> Iterator[Cell]:
    for name, makes in traffic.items():
        kept = [rate for rate in rates if rate in makes.rates]
        for cache_tokens, link, rate in product(caches, links, kept):
            yield Cell(name, cache_tokens, link, rate, makes)


def rivals(cell: Cell, names: Collection[str] = RULES) -> dict[str, Rule[Any]]:
    """The rules of these names but the default itself, and those that fetch also without; where
    nothing can be fetched only so."""
    found: dict[str, Rule[Any]] = {}
    for name in names:
        rule = RULES[name]()
        if isinstance(rule, FETCHING):
            found[f"{name}, no fetch"] = without_fetch(rule)
        if not isinstance(rule, Priced) and (cell.bytes_per_s or not isinstance(rule, FETCHING)):
            found[name] = rule
    return found


def may_fetch(rule: Rule[Any]) -> bool:
    return isinstance(rule, FETCHING) and rule.may_fetch


@cache
def trace_of(makes: CellTraffic, seed: int) -> Trace:
    return makes.load(seed)


@cache
def digest_of(makes: CellTraffic, seed: int) -> str:
    """Of the requests: what was measured on others is not taken for these."""
    text = repr((replace(makes, make=None), trace_of(makes, seed).requests))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
