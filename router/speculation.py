"""What workers will hold by a prompt's turn: the grains of prompts placed and not computed yet.

The index knows what is computed; this, what was asked for. Each expectation ends with its
request, with its worker, or by time. Pure: time comes in as an argument.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.types import GrainHash, WorkerId

LAPSE_S = 300.0  # what nobody settled: as long as a request lives by default
LINGER_S = 1.0  # a first token may overtake the event that says what was computed for it
MAX_GRAINS = 1 << 20


@dataclass(slots=True, eq=False)
class _Expectation:
    """Of one request: what it was the first to ask for, by the bit of the worker."""

    until: float
    grains: list[tuple[int, Sequence[GrainHash]]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Speculation:
    """Grain hash -> bitmask of the workers that were asked to compute it.

    A grain belongs to the first request that expects it there: those that come later count on
    it. If that one is given up, they compute it, and nobody is told before they have: a wrong
    expectation makes a request slower, never wrong. Over its bound the oldest are forgotten.
    """

    lapse_s: float = LAPSE_S
    linger_s: float = LINGER_S
    max_grains: int = MAX_GRAINS
    _masks: dict[GrainHash, int] = field(default_factory=dict)
    _expected: dict[str, _Expectation] = field(default_factory=dict)  # the first to lapse first
    _computed: dict[str, _Expectation] = field(default_factory=dict)  # the same, of what lingers
    _bits: dict[WorkerId, int] = field(default_factory=dict)
    _names: list[WorkerId] = field(default_factory=list)  # by the number of their bit
    _all: int = 0
    _free_bits: list[int] = field(default_factory=list)

    @property
    def num_grains(self) -> int:
        return len(self._masks)

    def expect(
        self, request_id: str, worker: WorkerId, hashes: Sequence[GrainHash], now: float
    ) -> None:
        """This request will compute, or fetch, these grains on this worker.

        Grains that the worker holds already may be left out, at the front; further workers of
        the same request are told by further calls.
        """
        self.lapse(now)
        bit = self._bits.get(worker) or self._take_bit(worker)
        fresh = self._add(bit, hashes)
        expectation = self._expected.pop(request_id, None) or _Expectation(now)
        expectation.until = now + self.lapse_s
        expectation.grains.append((bit, fresh))
        self._expected[request_id] = expectation
        while len(self._masks) > self.max_grains:
            oldest = self._computed or self._expected
            self._end(oldest, next(iter(oldest)))

    def computed(self, request_id: str, now: float) -> None:
        """Its first token is there: the events of its grains are here, or on their way."""
        if expectation := self._expected.pop(request_id, None):
            self._end(self._computed, request_id)
            expectation.until = now + self.linger_s
            self._computed[request_id] = expectation

    def settle(self, request_id: str) -> None:
        """It has ended, or will be placed again: what it has not computed is expected no more."""
        self._end(self._expected, request_id)

    def forget(self, worker: WorkerId) -> None:
        """It is lost, and all that was placed there with it."""
        bit = self._bits.pop(worker, 0)
        if not bit:
            return
        for expectation in (*self._expected.values(), *self._computed.values()):
            for other, grains in expectation.grains:
                if other == bit:
                    self._remove(bit, grains)
            expectation.grains = [each for each in expectation.grains if each[0] != bit]
        self._all &= ~bit
        self._free_bits.append(bit)

    def match(
        self, hashes: Sequence[GrainHash], ready: Mapping[WorkerId, int], now: float
    ) -> dict[WorkerId, int]:
        """How many leading grains a worker will hold, where that is more than it has ready.

        `ready` is `PrefixIndex.match` of the same hashes. A worker's walk begins where its
        ready ones end, so that both walks together look at a grain about once.
        """
        self.lapse(now)
        matched: dict[WorkerId, int] = {}
        if not self._masks:
            return matched
        starts, num = self._starts(ready), len(hashes)
        starts.pop(num, None)
        depths = sorted(starts)
        active = 0
        for depth, stop in zip(depths, [*depths[1:], num], strict=False):
            # Most go no further than what is ready.
            active |= starts[depth] & self._masks.get(hashes[depth], 0)
            if active:
                active = self._walk(hashes, depth, stop, active, matched)
        self._record(active, num, matched)
        return matched

    def check(self) -> None:
        """Every bit is somebody's, and every count equals what the entries say."""
        counted: dict[GrainHash, int] = defaultdict(int)
        for expectation in (*self._expected.values(), *self._computed.values()):
            for bit, grains in expectation.grains:
                for grain in grains:
                    assert not counted[grain] & bit, "a grain that two requests own"
                    counted[grain] |= bit
        assert counted == self._masks
        assert not self._expected.keys() & self._computed.keys()
        assert all(self._names[bit.bit_length() - 1] == name for name, bit in self._bits.items())
        assert sum(self._bits.values()) == self._all
        bits = sorted([*self._bits.values(), *self._free_bits])
        assert bits == [1 << number for number in range(len(self._names))], "a bit lost or doubled"
        assert len(self._masks) <= self.max_grains

    def _add(self, bit: int, hashes: Sequence[GrainHash]) -> Sequence[GrainHash]:
        """Returns those that nobody expected there yet."""
        masks = self._masks
        if masks.keys().isdisjoint(hashes):
            masks.update(dict.fromkeys(hashes, bit))
            return hashes
        fresh, last, merged = [], -1, -1
        for grain in hashes:
            mask = masks.get(grain, 0)
            if mask is not last:  # one object for a run of grains: a walk compares by identity
                last, merged = mask, mask | bit
            if merged != mask:
                masks[grain] = merged
                fresh.append(grain)
        return fresh

    def _remove(self, bit: int, grains: Sequence[GrainHash]) -> None:
        masks, last, left = self._masks, -1, -1
        for grain in grains:
            mask = masks[grain]
            if mask is not last:
                last, left = mask, mask ^ bit
            if left:
                masks[grain] = left
            else:
                del masks[grain]

    def _starts(self, ready: Mapping[WorkerId, int]) -> dict[int, int]:
        """Where the walks begin: depth -> the bits of the workers whose ready grains end there."""
        bits, starts, cold = self._bits, {0: 0}, self._all
        for worker, depth in ready.items():
            if bit := bits.get(worker):
                starts[depth] = starts.get(depth, 0) | bit
                cold ^= bit
        starts[0] |= cold
        return starts

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
        names = self._names
        while bits:
            number = bits.bit_length() - 1
            matched[names[number]] = depth
            bits ^= 1 << number

    def lapse(self, now: float) -> None:
        """Forgets what nobody settled in time."""
        for expectations in (self._expected, self._computed):
            while expectations:
                request_id, oldest = next(iter(expectations.items()))
                if oldest.until > now:
                    break
                self._end(expectations, request_id)

    def _end(self, expectations: dict[str, _Expectation], request_id: str) -> None:
        if expectation := expectations.pop(request_id, None):
            for bit, grains in expectation.grains:
                self._remove(bit, grains)

    def _take_bit(self, worker: WorkerId) -> int:
        if self._free_bits:
            bit = self._free_bits.pop()
        else:
            bit = 1 << len(self._names)
            self._names.append(worker)
        self._bits[worker], self._names[bit.bit_length() - 1] = bit, worker
        self._all |= bit
        return bit
