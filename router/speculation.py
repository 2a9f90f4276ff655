"""What workers will hold by a prompt's turn: the grains of prompts placed and not computed yet.

The index knows what is computed; this, what was asked for. Each expectation ends with its
request, with its worker, or by time. Pure: time comes in as an argument.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from cluster.types import GrainHash, WorkerId
from router.numbering import Ends, Numbering

LAPSE_S = 300.0  # what nobody settled: as long as a request lives by default
LINGER_S = 1.0  # a first token may overtake the event that says what was computed for it
MAX_GRAINS = 1 << 20
_MAX_LAPSED = 1 << 13  # grains, or one request's, that a call forgets: nobody waits long for it


@dataclass(slots=True, eq=False)
class Expectation:
    """Of one placed request: what it was the first to ask for of a worker."""

    bit: int  # the worker's
    grains: Sequence[GrainHash]
    until: float


@dataclass(slots=True, eq=False)
class Speculation:
    """Grain hash -> bitmask of the workers that were asked to compute it.

    A grain belongs to the first request that expects it there: those that come later count on
    it. If that one is given up, they compute it, and nobody is told before they have: a wrong
    expectation makes a request slower, never wrong. Over its bound the oldest are forgotten.
    """

    numbering: Numbering = field(default_factory=Numbering)
    lapse_s: float = LAPSE_S
    linger_s: float = LINGER_S
    max_grains: int = MAX_GRAINS
    _masks: dict[GrainHash, int] = field(default_factory=dict)
    # The first to lapse first; in the second, of what is computed and lingers.
    _expected: dict[Expectation, None] = field(default_factory=dict)
    _computed: dict[Expectation, None] = field(default_factory=dict)
    _bits: dict[WorkerId, int] = field(default_factory=dict)  # of whom anything was expected
    _version: int = 0  # of the numbering, for which these are right

    @property
    def num_grains(self) -> int:
        return len(self._masks)

    def expect(self, worker: WorkerId, hashes: Sequence[GrainHash], now: float) -> Expectation:
        """A request will compute, or fetch, these grains on this worker. Those that the worker
        holds already may be left out, at the front. Returns what its end is told of."""
        self.lapse(now)
        self._renumber()
        bit = self._bits[worker] = self.numbering.bit_of(worker)
        expectation = Expectation(bit, self._add(bit, hashes), now + self.lapse_s)
        self._expected[expectation] = None
        while len(self._masks) > self.max_grains:
            oldest = self._computed or self._expected
            self._end(oldest, next(iter(oldest)))
        return expectation

    def computed(self, expectation: Expectation, now: float) -> None:
        """Its first token is there: the events of its grains are here, or on their way."""
        if expectation in self._expected:
            del self._expected[expectation]
            expectation.until = now + self.linger_s
            self._computed[expectation] = None

    def settle(self, expectation: Expectation) -> None:
        """Its request has ended, or will be placed again: what is not computed is expected no
        more."""
        self._end(self._expected, expectation)

    def forget(self, worker: WorkerId) -> None:
        """It is lost, and all that was placed there with it."""
        self._renumber()
        bit = self._bits.pop(worker, 0)
        for expectations in (self._expected, self._computed):
            for expectation in [each for each in expectations if each.bit == bit]:
                self._end(expectations, expectation)

    def match(self, hashes: Sequence[GrainHash], ends: Ends, now: float) -> dict[WorkerId, int]:
        """How many leading grains a worker will hold, where that is more than it has ready.

        `ends` is `PrefixIndex.match` of the same hashes. A worker's walk begins where its ready
        ones end, so that both walks together look at a grain about once.
        """
        self.lapse(now)
        self._renumber()
        matched: dict[WorkerId, int] = {}
        if not self._masks:
            return matched
        num, ready = len(hashes), 0
        for _, bits in ends:
            ready |= bits
        active = 0
        for (start, bits), (stop, _) in pairwise([(0, ~ready), *ends, (num, 0)]):
            # Most go no further than what is ready.
            active |= bits & self._masks.get(hashes[start], 0) if start < num else 0
            if active:
                active = self._walk(hashes, start, stop, active, matched)
        if active:
            self._record(active, num, matched)
        return matched

    def check(self) -> None:
        """Every bit is somebody's, and every count equals what the entries say."""
        counted: dict[GrainHash, int] = defaultdict(int)
        for expectation in (*self._expected, *self._computed):
            for grain in expectation.grains:
                assert not counted[grain] & expectation.bit, "a grain that two requests own"
                counted[grain] |= expectation.bit
        assert counted == self._masks
        known = sum(set(self._bits.values()))
        assert all(mask & known == mask for mask in self._masks.values()), "nobody's bit"
        assert len(self._masks) <= self.max_grains

    def _add(self, bit: int, hashes: Sequence[GrainHash]) -> Sequence[GrainHash]:
        """Returns those that nobody expected there yet."""
        if self._masks.keys().isdisjoint(hashes):
            self._masks.update(dict.fromkeys(hashes, bit))
            return hashes
        held = list(map(self._masks.get, hashes))
        # One object for equal masks: a walk compares by identity.
        merged = {mask: (mask or 0) | bit for mask in set(held)}
        self._masks.update(zip(hashes, map(merged.__getitem__, held), strict=True))
        if not any(mask and mask & bit for mask in merged):
            return hashes
        return [grain for grain, mask in zip(hashes, held, strict=True) if merged[mask] != mask]

    def _remove(self, bit: int, grains: Sequence[GrainHash]) -> None:
        held = list(map(self._masks.pop, grains))
        left = {mask: mask ^ bit for mask in set(held)}
        if any(left.values()):  # others expect some of them
            rest = zip(grains, map(left.__getitem__, held), strict=True)
            self._masks.update(each for each in rest if each[1])

    def _renumber(self) -> None:
        """Whose bit is another one now keeps what is expected of it."""
        if self._version == self.numbering.version:
            return
        bits = {worker: self.numbering.bit_of(worker) for worker in self._bits}
        self._version = self.numbering.version
        if bits == self._bits:
            return
        moved = {bit: bits[worker] for worker, bit in self._bits.items()}
        self._bits = bits
        self._masks.clear()
        for expectation in (*self._expected, *self._computed):
            expectation.bit = moved[expectation.bit]
            self._add(expectation.bit, expectation.grains)

    def _walk(
        self,
        hashes: Sequence[GrainHash],
        start: int,
        stop: int,
        active: int,
        matched: dict[WorkerId, int],
    ) -> int:
        """Who is left at `stop` of the active at `start`; the others are recorded."""
        last: int | None = -1  # no entry has it
        for depth, mask in enumerate(map(self._masks.get, hashes[start:stop]), start):
            if mask is last:
                continue
            held = active & (mask or 0)
            if held != active:
                self._record(active ^ held, depth, matched)
                active = held
                if not active:
                    break
            last = mask
        return active

    def _record(self, bits: int, depth: int, matched: dict[WorkerId, int]) -> None:
        for worker in self.numbering.workers_of(bits):
            matched[worker] = depth

    def lapse(self, now: float) -> None:
        """Forgets what nobody settled in time; of very much a part, and the next call the rest."""
        num_left = _MAX_LAPSED
        for expectations in (self._expected, self._computed):
            while expectations and num_left > 0:
                oldest = next(iter(expectations))
                if oldest.until > now:
                    break
                num_left -= len(oldest.grains)
                self._end(expectations, oldest)

    def _end(self, expectations: dict[Expectation, None], expectation: Expectation) -> None:
        if expectation in expectations:
            del expectations[expectation]
            self._remove(expectation.bit, expectation.grains)
