"""Placement: `(request, frozen snapshot, state) -> (decision, state)`. Pure; no clock, no I/O.

The least price in seconds wins: what this request waits, what it makes others wait, and the
GPU seconds it adds, weighted by the load.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from cluster.types import Placement, WorkerId
from router.pool import PoolSnapshot, WorkerView
from router.price import (
    PlacementRequest,
    PriceConfig,
    Quote,
    Terms,
    load_factor,
    quote_decode,
    quote_local_prefill,
    quote_prefill,
    transfer_s,
)

_TIE = 1e-6  # relative: prices this close are the same price


class Disaggregate(StrEnum):
    AUTO = "auto"
    ALWAYS = "always"  # wherever a prefill worker serves
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    disaggregate: Disaggregate = Disaggregate.AUTO
    price: PriceConfig = field(default_factory=PriceConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    """What the policy remembers: where among equals it goes next."""

    rotation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeOption:
    """One decode worker: its share of every candidate that decodes there."""

    decode: Quote
    local: Quote | None  # None: it may not prefill
    transfer_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to serve the request, priced."""

    placement: Placement
    terms: Terms
    num_cached_tokens: int

    @property
    def total_s(self) -> float:
        return self.terms.total_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The placement, and all that it was chosen from."""

    placement: Placement
    price_s: float
    num_cached_tokens: int  # predicted, where the prompt is computed
    num_prefill_tokens: int
    load_factor: float
    options: tuple[DecodeOption, ...]
    prefills: tuple[Quote, ...]

    def candidates(self) -> list[Candidate]:
        """Every candidate with every term, the cheapest first. For explaining, not for speed."""
        return sorted(self._candidates(), key=lambda candidate: candidate.total_s)

    def _candidates(self) -> Iterator[Candidate]:
        for option in self.options:
            if option.local:
                yield _candidate(option, None, option.local)
            for prefill in self.prefills:
                yield _candidate(option, prefill.worker, prefill)


class _Choice(NamedTuple):
    price_s: float
    decode: WorkerId
    prefill: WorkerId | None
    quote: Quote


def place(
    request: PlacementRequest, snapshot: PoolSnapshot, state: PolicyState, config: PolicyConfig
) -> tuple[Decision | None, PolicyState]:
    """Chooses the cheapest candidate; None when no decode worker is left to choose from."""
    decodes = [view for view in snapshot.decode if view.worker not in request.excluded]
    if not decodes:
        return None, state
    prefills = _prefill_views(request, snapshot, config.disaggregate)
    factor = load_factor(tuple(prefills) or tuple(decodes))
    now = snapshot.now
    quotes = tuple(quote_prefill(request, view, factor, config.price, now=now) for view in prefills)
    may_be_local = not (quotes and config.disaggregate is Disaggregate.ALWAYS)
    options = tuple(
        _option(request, view, factor, config, now=now, may_be_local=may_be_local)
        for view in decodes
    )
    chosen = _cheapest(options, quotes, state.rotation)
    num_cached = chosen.quote.num_cached_tokens
    decision = Decision(
        placement=Placement(decode=chosen.decode, prefill=chosen.prefill),
        price_s=chosen.price_s,
        num_cached_tokens=num_cached,
        num_prefill_tokens=request.num_prompt_tokens - num_cached,
        load_factor=factor,
        options=options,
        prefills=quotes,
    )
    return decision, replace(state, rotation=state.rotation + 1)


def _prefill_views(
    request: PlacementRequest, snapshot: PoolSnapshot, disaggregate: Disaggregate
) -> list[WorkerView]:
    """Prefill workers that may be used, and that the prompt can ever fit on."""
    if disaggregate is Disaggregate.NEVER:
        return []
    return [
        view
        for view in snapshot.prefill
        if view.worker not in request.excluded
        and (view.num_total_tokens == 0 or request.num_prompt_tokens <= view.num_total_tokens)
    ]


def _option(
    request: PlacementRequest,
    view: WorkerView,
    factor: float,
    config: PolicyConfig,
    *,
    now: float,
    may_be_local: bool,
) -> DecodeOption:
    price, local = config.price, None
    if may_be_local:
        local = quote_local_prefill(request, view, factor, price, now=now)
    return DecodeOption(
        decode=quote_decode(request, view, factor, price),
        local=local,
        transfer_s=transfer_s(request, view, price),
    )


def _cheapest(
    options: tuple[DecodeOption, ...], prefills: tuple[Quote, ...], rotation: int
) -> _Choice:
    # What a prefill costs is the same for every decode worker, so only the cheapest can win.
    least_s = min((prefill.total_s for prefill in prefills), default=0.0)
    prefills = tuple(prefill for prefill in prefills if prefill.total_s <= least_s * (1 + _TIE))
    choices = list(_choices(options, prefills))
    least_s = min(choice.price_s for choice in choices)
    tied = [choice for choice in choices if choice.price_s <= least_s * (1 + _TIE)]
    tied.sort(key=lambda choice: (choice.decode, choice.prefill or ""))
    return tied[rotation % len(tied)]


def _choices(options: tuple[DecodeOption, ...], prefills: tuple[Quote, ...]) -> Iterator[_Choice]:
    for option in options:
        decode, total_s = option.decode.worker, option.decode.total_s
        if option.local:
            yield _Choice(total_s + option.local.total_s, decode, None, option.local)
        for prefill in prefills:
            price_s = total_s + option.transfer_s + prefill.total_s
            yield _Choice(price_s, decode, prefill.worker, prefill)


def _candidate(option: DecodeOption, prefill: WorkerId | None, quote: Quote) -> Candidate:
    transfer = Terms(transfer_s=option.transfer_s) if prefill else Terms()
    return Candidate(
        placement=Placement(decode=option.decode.worker, prefill=prefill),
        terms=option.decode.terms.plus(quote.terms).plus(transfer),
        num_cached_tokens=quote.num_cached_tokens,
    )
