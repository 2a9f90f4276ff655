"""Keeps what was decided lately and what came of it: a record a request, from its first placement.

Bounded in bytes: what began first is forgotten first. Of a request in flight its flight holds the
record besides: it is what pins it to its policy.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from cluster.histogram import Histogram
from router.decision import Attempt
from router.explain import Hindsight, look_back
from router.histogram import DurationHistogram
from router.metrics.bounds import TTFT_BOUNDS_S
from router.pair_costs import PairCosts
from router.rollout.canary import Figures
from router.rollout.generations import LivePolicy, share_of

_RECORD_BYTES = 900
_ATTEMPT_BYTES = 2600  # with the rows of its snapshot that changed since the one before
_ROW_BYTES = 8
_COLUMN_BYTES = 112  # an array, without its numbers
_HINDSIGHT_SHARE = 1 / 64  # of the requests are looked back at
_SALT = (1 << 64) - 1  # no generation's number: samples are independent of canaries


class Fate(StrEnum):
    WAITING = "waiting"  # for the first token
    ANSWERING = "answering"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"  # by its caller, or wrong: no policy's fault


class Phases(NamedTuple):
    """Where the seconds of a finished request went, as its timeline tells."""

    router_s: float
    queue_s: float
    prefill_s: float
    transfer_s: float  # beside the prefill, but for its end
    decode_s: float


@dataclass(slots=True, eq=False)
class Record:
    """Times are of the router's monotonic clock."""

    request_id: str
    live: LivePolicy  # that it is pinned to
    figures: tuple[Figures, ...]  # that it counts in
    arrived_at: float
    lot: float  # in [0, 1): those below a share are its sample
    attempts: list[Attempt] = field(default_factory=list)
    fate: Fate = Fate.WAITING
    first_token_at: float | None = None
    ended_at: float | None = None
    num_cached_tokens: int = 0  # as the worker found
    num_tokens: int = 0  # of all choices
    error: str = ""
    phases: Phases | None = None  # None: it has not finished
    num_bytes: int = 0  # that are kept of it

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_at is None else self.first_token_at - self.arrived_at

    @property
    def is_sampled(self) -> bool:
        shadow = self.live.shadow
        return self.lot < max(_HINDSIGHT_SHARE, shadow.sample_share if shadow else 0.0)

    def hindsight(self, attempt: Attempt) -> Hindsight | None:
        """None while it is not known what is needed, and of attempts that were given up."""
        if self.fate is not Fate.FINISHED or attempt is not self.attempts[-1]:
            return None
        num_tokens = self.num_tokens // attempt.request.num_choices
        return look_back(attempt, num_cached=self.num_cached_tokens, num_tokens=num_tokens)


@dataclass(slots=True, eq=False)
class Regret:
    """Sums up a sample: how much dearer than the best, in hindsight; actual TTFT less predicted."""

    dearer: DurationHistogram = field(default_factory=DurationHistogram)
    sum_s: float = 0.0
    ttft_error_s: float = 0.0

    def add(self, record: Record) -> None:
        attempt = record.attempts[-1]
        found = record.hindsight(attempt)
        if found is None or record.ttft_s is None or attempt.decision is None:
            return
        self.dearer.add(found.regret_s)
        self.sum_s += found.regret_s
        predicted_s = attempt.request.age_s + attempt.decision.ttft_s
        self.ttft_error_s += record.ttft_s - predicted_s


@dataclass(slots=True, eq=False)
class Records:
    """With a budget of 0 bytes decisions are not kept at all."""

    budget_bytes: int = 0
    regret: Regret = field(default_factory=Regret)
    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT_BOUNDS_S))  # of all
    num_bytes: int = 0
    _kept: OrderedDict[str, Record] = field(default_factory=OrderedDict)
    _costs: PairCosts | None = None  # of the last attempt: usually shared with the next one

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, request_id: str) -> Record | None:
        """Finds the record of a request that is remembered."""
        return self._kept.get(request_id)

    def since(self, arrived_at: float) -> list[Record]:
        """Those that are remembered and arrived then or later."""
        return [record for record in self._kept.values() if record.arrived_at >= arrived_at]

    def begin(self, request_id: str, live: LivePolicy, arrived_at: float) -> Record:
        figures = (live.since_start, live.on_trial)
        lot = share_of(request_id, _SALT) if self.budget_bytes else 1.0
        record = Record(request_id, live, figures, arrived_at, lot)
        for each in figures:
            each.num_placed += 1
        if self.budget_bytes:
            self._forget(request_id)  # an earlier request of the same id
            self._kept[request_id] = record
            self._weigh(record, _RECORD_BYTES)
        return record

    def attempted(self, record: Record, attempt: Attempt) -> None:
        if not self.budget_bytes:
            return
        self._weigh(record, _weight(attempt, self._costs))
        self._costs = attempt.snapshot.costs
        record.attempts.append(attempt if record.is_sampled else attempt.as_rows())

    def first_token(self, record: Record, num_cached_tokens: int, now: float) -> None:
        record.first_token_at, record.fate = now, Fate.ANSWERING
        record.num_cached_tokens = num_cached_tokens
        self.ttft.add(now - record.arrived_at)
        for figures in record.figures:
            figures.ttft.add(now - record.arrived_at)

    def ended(
        self, record: Record, fate: Fate, now: float, *, num_tokens: int = 0, error: str = ""
    ) -> None:
        record.fate, record.ended_at = fate, now
        record.num_tokens, record.error = num_tokens, error
        if fate is not Fate.CANCELLED:
            for figures in record.figures:
                figures.num_ended += 1
                figures.num_errors += fate is Fate.FAILED
        if record.attempts and record.is_sampled:
            self._look_back(record)
            record.attempts[:] = [attempt.as_rows() for attempt in record.attempts]

    def check(self) -> None:
        assert self.num_bytes == sum(record.num_bytes for record in self._kept.values())
        assert self.num_bytes <= self.budget_bytes or len(self._kept) <= 1

    def _look_back(self, record: Record) -> None:
        if record.lot < _HINDSIGHT_SHARE:
            self.regret.add(record)
        shadow = record.live.shadow
        if shadow is not None and record.lot < shadow.sample_share:
            shadow.look(record.attempts[0])

    def _weigh(self, record: Record, num_bytes: int) -> None:
        if self._kept.get(record.request_id) is not record:
            return  # it has been forgotten, though it is in flight
        record.num_bytes += num_bytes
        self.num_bytes += num_bytes
        while self.num_bytes > self.budget_bytes and len(self._kept) > 1:
            self._forget(next(iter(self._kept)))

    def _forget(self, request_id: str) -> None:
        if record := self._kept.pop(request_id, None):
            self.num_bytes -= record.num_bytes


def seen(figures: Figures, in_flight: Iterable[Record], now: float) -> Figures:
    """These, and how long those have waited that wait for their first token."""
    waits = (
        now - record.arrived_at
        for record in in_flight
        if record.first_token_at is None and any(each is figures for each in record.figures)
    )
    return replace(figures, ttft=figures.ttft.with_more(waits))


def _weight(attempt: Attempt, known: PairCosts | None) -> int:
    """Bytes that are kept for it. Costs are shared until a link's change."""
    request, snapshot, *_ = attempt
    columns = (request.num_ready, request.num_held, request.num_siblings)
    held = sum(_COLUMN_BYTES + each.nbytes for each in columns if each is not None)
    weight = _ATTEMPT_BYTES + _ROW_BYTES * len(snapshot.loads) + held
    if snapshot.costs is not known:
        weight += _own_bytes(snapshot.costs)
    return weight


def _own_bytes(costs: PairCosts) -> int:
    """Counts bytes; those that are the same for each pair are one number."""
    matrices = (costs.setup_s, costs.s_per_byte)
    return sum(each.nbytes if each.flags.owndata else 0 for each in matrices)
