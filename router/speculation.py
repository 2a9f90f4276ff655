"""Predicts what workers hold by a prompt's turn: grains of prompts placed and not computed yet.

The index knows what is computed; this, what was asked for. Each expectation ends with its
request, with its worker, or by time. Pure: time comes in as an argument.

Prompts in flight are paths in a radix tree: grains are chain hashes, so that two prompts agree on
all that lies before a grain that they share, and where they part is found by halving.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from cluster.types import GrainHash, WorkerId
from router.numbering import Ends, Numbering

LAPSE_S = 300.0  # what nobody settled: as long as a request lives by default
LINGER_S = 1.0  # a first token may overtake the event that says what was computed for it
MAX_GRAINS = 1 << 20
_MAX_LAPSED = 1 << 13  # grains, or one request's, that a call forgets: nobody waits long for it
_LEAST_LAPSED = 1 << 5  # as many as the work for one that has few


@dataclass(slots=True, eq=False)
class Expectation:
    """Holds the grains of one placed request's prompt, of which it was the first to ask some of the
    worker."""

    worker: WorkerId
    hashes: Sequence[GrainHash]
    until: float


@dataclass(slots=True, eq=False)
class _Stretch:
    """Grains that every prompt has which has the first of them, and what is expected of them."""

    grains: Sequence[GrainHash]  # empty: the root
    num_prompts: int = 0  # that pass
    owners: dict[WorkerId, Expectation] = field(default_factory=dict)  # who asked first
    children: "dict[GrainHash, _Stretch]" = field(default_factory=dict)  # by their first grain
    mask: int = 0  # the owners' bits, in this version of the numbering
    version: int = -1

    def split(self, num: int) -> None:
        """Leaves so many grains here, and the rest to an only child."""
        rest = replace(self, grains=self.grains[num:], owners=dict(self.owners))
        self.grains, self.children = self.grains[:num], {rest.grains[0]: rest}

    def take_in(self) -> "list[_Stretch]":
        """Undoes the splits that nothing speaks for any more. Returns what is no more."""
        taken, children = [], self.children
        while len(children) == 1:
            (child,) = children.values()
            if child.num_prompts != self.num_prompts or child.owners != self.owners:
                break
            taken.append(child)
            children = child.children
        if taken:
            self.grains = (*self.grains, *chain.from_iterable(each.grains for each in taken))
            self.children = children
        return taken


@dataclass(slots=True, eq=False)
class Speculation:
    """A grain belongs to the first request that expects it of a worker: those that come later
    count on it. If that one is given up, they compute it, and nobody is told before they have: a
    wrong expectation makes a request slower, never wrong. Over its bound the oldest are forgotten.
    """

    numbering: Numbering = field(default_factory=Numbering)
    lapse_s: float = LAPSE_S
    linger_s: float = LINGER_S
    max_grains: int = MAX_GRAINS
    num_grains: int = 0  # that are expected of anybody
    _root: _Stretch = field(default_factory=lambda: _Stretch(()))
    # The first to lapse first; in the second, of what is computed and lingers.
    _expected: dict[Expectation, None] = field(default_factory=dict)
    _computed: dict[Expectation, None] = field(default_factory=dict)

    def expect(
        self, worker: WorkerId, hashes: Sequence[GrainHash], now: float, *, start: int = 0
    ) -> Expectation:
        """A request will compute, or fetch, a prompt's grains from `start` on at this worker, which
        holds those before it. Returns what its end is told of."""
        self.lapse(now)
        path = hashes if start < len(hashes) else ()
        expectation = Expectation(worker, path, now + self.lapse_s)
        self._expected[expectation] = None
        for begin, run in self._laid(path, start):
            run.num_prompts += 1
            if begin >= start and worker not in run.owners:
                self.num_grains += 0 if run.owners else len(run.grains)
                run.owners[worker] = expectation
                run.mask |= self.numbering.bit_of(worker)
        while self.num_grains > self.max_grains:
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
        for expectations in (self._expected, self._computed):
            lost = [each for each in expectations if each.worker == worker]
            # The shortest first: where they branched off the longer ones are whole again.
            for expectation in sorted(lost, key=lambda each: len(each.hashes)):
                self._end(expectations, expectation)

    def match(self, hashes: Sequence[GrainHash], ends: Ends, now: float) -> dict[WorkerId, int]:
        """Says how many leading grains a worker will hold, where that is more than it has ready.

        `ends` is `PrefixIndex.match` of the same hashes: a worker's expected ones count where they
        begin no later than its ready ones end.
        """
        self.lapse(now)
        matched: dict[WorkerId, int] = {}
        path = [(begin, begin + num, self._mask(run)) for begin, run, num in self._path(hashes)]
        if not any(mask for _, _, mask in path):
            return matched
        path.append((path[-1][1], len(hashes), 0))  # what nobody is expected to have
        ready = 0
        for _, bits in ends:
            ready |= bits
        starts, active = deque([(0, ~ready), *ends]), 0
        for begin, end, mask in path:
            if lost := active & ~mask:
                self._record(lost, begin, matched)
                active ^= lost
            while starts and starts[0][0] < end:
                active |= starts.popleft()[1] & mask
        if active:
            self._record(active, len(hashes), matched)
        return matched

    def lapse(self, now: float) -> None:
        """Forgets what nobody settled in time; of very many a part, and the next call the rest."""
        num_left = _MAX_LAPSED
        for expectations in (self._expected, self._computed):
            while expectations and num_left > 0:
                oldest = next(iter(expectations))
                if oldest.until > now:
                    break
                num_left -= max(_LEAST_LAPSED, len(oldest.hashes))
                self._end(expectations, oldest)

    def check(self) -> None:
        """The tree is what the expectations say."""
        passing: Counter[_Stretch] = Counter()
        for expectation in (*self._expected, *self._computed):
            path = list(self._path(expectation.hashes))
            assert sum(num for _, _, num in path) == len(expectation.hashes)
            assert all(num == len(run.grains) for _, run, num in path)
            passing.update(run for _, run, _ in path)
        runs, ahead = [], [*self._root.children.values()]
        while ahead:
            run = ahead.pop()
            runs.append(run)
            ahead += run.children.values()
        assert {run: run.num_prompts for run in runs} == passing
        num_owned = sum(len(run.grains) for run in runs if run.owners)
        assert self.num_grains == num_owned <= self.max_grains
        for run in runs:
            for worker, owner in run.owners.items():
                assert owner.worker == worker
                assert run in [each for _, each, _ in self._path(owner.hashes)]

    # -- the tree ----------------------------------------------------------------------------

    def _path(self, hashes: Sequence[GrainHash]) -> Iterator[tuple[int, _Stretch, int]]:
        """The runs of a prompt: where each begins, and how many of its grains are the prompt's; all
        but of the last."""
        begin, children = 0, self._root.children
        while begin < len(hashes) and (run := children.get(hashes[begin])) is not None:
            num = _num_shared(run.grains, hashes, begin)
            yield begin, run, num
            if num < len(run.grains):
                return
            begin, children = begin + num, run.children

    def _laid(self, hashes: Sequence[GrainHash], start: int) -> Iterator[tuple[int, _Stretch]]:
        """The runs of a prompt, none of which goes beyond `start` or the prompt's end: where they
        are not there they are made."""
        begin, children = 0, self._root.children
        while begin < len(hashes):
            run = children.get(hashes[begin])
            if run is None:
                run = children[hashes[begin]] = _Stretch(hashes[begin:])
            num = _num_shared(run.grains, hashes, begin)
            num = start - begin if begin < start < begin + num else num
            if num < len(run.grains):
                run.split(num)
            yield begin, run
            begin, children = begin + num, run.children

    def _mask(self, run: _Stretch) -> int:
        if run.version != self.numbering.version:
            run.mask = sum(map(self.numbering.bit_of, run.owners))
            run.version = self.numbering.version
        return run.mask

    def _record(self, bits: int, depth: int, matched: dict[WorkerId, int]) -> None:
        for worker in self.numbering.workers_of(bits):
            matched[worker] = depth

    def _end(self, expectations: dict[Expectation, None], expectation: Expectation) -> None:
        if expectation not in expectations:
            return
        del expectations[expectation]
        kept = [self._root]
        for _, run, num in list(self._path(expectation.hashes)):
            run.num_prompts -= 1
            if run.owners.get(expectation.worker) is expectation:
                del run.owners[expectation.worker]
                run.mask &= ~self.numbering.bit_of(expectation.worker)
                self.num_grains -= 0 if run.owners else num
            if run.num_prompts:
                kept.append(run)
            else:  # nor has what follows it
                kept[-1].children.pop(run.grains[0], None)
        taken: set[_Stretch] = set()
        for run in kept[1:]:
            if run not in taken:
                taken.update(run.take_in())


def _num_shared(grains: Sequence[GrainHash], hashes: Sequence[GrainHash], begin: int) -> int:
    """Counts the leading grains that are those of the prompt from `begin` on; the first is."""
    low, high = 1, min(len(grains), len(hashes) - begin)
    if grains[high - 1] == hashes[begin + high - 1]:
        return high
    while low < high - 1:  # grain low - 1 is shared, grain high - 1 is not
        middle = (low + high) // 2
        if grains[middle - 1] == hashes[begin + middle - 1]:
            low = middle
        else:
            high = middle
    return low
