"""A cached prefix brought from another modelled worker, as `worker/fetch.py` does it: only what
is missing moves, one fetch at a time of the same, and one that fails or takes too long is computed.
"""

from collections.abc import Callable
from collections.abc import Sequence as Hashes
from dataclasses import dataclass, field
from functools import partial

from cluster.types import BlockId, GrainHash
from engine.sequence import Sequence
from kv_transfer.loan import Word
from simulator.agenda import Action
from simulator.loan import ModelledLoan
from simulator.site import Site
from worker.compute import Compute


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Names what the router believes that another worker has of a prompt."""

    source: Site
    num_tokens: int


@dataclass(slots=True, eq=False)
class Wish:
    """A prompt that waits for its prefix."""

    sequence: Sequence
    prefix: Prefix | None  # None: only for what is fetched for another
    until_s: float
    is_wanted: Callable[[], bool]  # whether anybody still waits for the prompt
    then: Action  # the prefix is here, as far as it came
    is_over: bool = False
    lock: GrainHash | None = None  # what it fetches, by the first grain
    timer: int | None = None
    found: list[BlockId] = field(default_factory=list)  # held at the source

    @property
    def source(self) -> Site:
        assert self.prefix is not None
        return self.prefix.source


class ModelledFetches:
    """Runs the fetches of one worker. Whoever wants the same prefix waits, and finds it cached."""

    def __init__(self, site: Site, compute: Compute) -> None:
        self._site = site
        self._compute = compute
        self._locks: dict[GrainHash | None, list[Wish]] = {}  # by the first grain that is missing
        self._begun: dict[Wish, None] = {}  # until nothing of it is on its way

    @property
    def is_any(self) -> bool:
        """Tells whether prompts wait for prefixes, or these are on their way."""
        return bool(self._locks or self._begun)

    def fetch(
        self,
        sequence: Sequence,
        prefix: Prefix | None,
        is_wanted: Callable[[], bool],
        then: Action,
    ) -> None:
        """Calls `then`, unless nobody wants the prompt any more, at once or when the prefix is
        here or has failed to come. `prefix` None: waits if it is being fetched for another."""
        if prefix is None and not self._locks:
            then()
            return
        until_s = self._now_s + self._site.world.setting.fetch_s
        self._await(Wish(sequence, prefix, until_s, is_wanted, then))

    def _await(self, wish: Wish) -> None:
        hashes = self._hashes(wish)
        have = self._num_cached(hashes)
        missing = hashes[have] if have < len(hashes) else None
        if missing is not None and (waiting := self._locks.get(missing)) is not None:
            waiting.append(wish)
        elif missing is None or not self._is_worth_fetching(wish, have):
            wish.then()
        else:
            wish.lock = missing
            self._begin(wish)

    def _is_worth_fetching(self, wish: Wish, num_cached: int) -> bool:
        prefix, grain = wish.prefix, self._site.pool.hash_grain
        return (
            prefix is not None
            and prefix.source is not self._site
            and prefix.num_tokens > num_cached * grain
            and wish.until_s > self._now_s
        )

    def source_died(self, source: Site) -> None:
        """Nothing more comes from there."""
        for wish in [wish for wish in self._begun if wish.source is source]:
            self._fail(wish)
            self._forget(wish)

    def die(self) -> None:
        """Dies, as we do: who holds something for us is told."""
        for wish in self._begun:
            self._let_go(wish)
        self._begun.clear()

    # -- one fetch ---------------------------------------------------------------------------

    def _begin(self, wish: Wish) -> None:
        self._locks[wish.lock] = []
        self._begun[wish] = None
        world, source = self._site.world, wish.source
        wish.timer = world.agenda.at(wish.until_s, partial(self._be_late, wish))
        message_s = world.setting.message_s
        if source.is_dead:
            self._site.post(message_s, partial(self.source_died, source))
        else:
            source.post(message_s, partial(self._find, wish))

    def _find(self, wish: Wish) -> None:
        """Looks at the source: what is there is held until the fetch is over."""
        if wish not in self._begun:
            return
        loan = ModelledLoan(wish.source, is_prompt=False)
        loan.said(Word.FOUND)
        hashes, pool = self._hashes(wish), wish.source.pool
        wish.found = pool.match(hashes, len(hashes) * pool.hash_grain)
        pool.hold(wish.found)
        self._site.post(self._site.world.setting.message_s, partial(self._take, wish, loan))

    def _take(self, wish: Wish, loan: ModelledLoan) -> None:
        """Holds what is cached here, and takes blocks for what the source has beyond it."""
        loan.arrived(Word.FOUND)
        hashes, pool = self._hashes(wish), self._site.pool
        cached = pool.match(hashes, len(hashes) * pool.hash_grain)
        num_found = len(wish.found) * wish.source.pool.block_size
        num_missing = num_found // pool.block_size - len(cached)
        head_room = self._compute.num_running + 1
        if wish.is_over or num_missing <= 0 or num_missing + head_room > pool.num_available:
            self._end(wish)
            self._forget(wish)
            return
        pool.hold(cached)
        loan.granted()
        loan.grant_arrived()
        fresh = pool.allocate(num_missing, after=cached[-1] if cached else None) or []
        setting = self._site.world.setting
        num_bytes = num_missing * pool.block_size * setting.model.token_bytes
        seconds = setting.link.setup_s + num_bytes / setting.link.bytes_per_s
        self._site.post(seconds, partial(self._land, wish, loan, cached, fresh))

    def _land(
        self, wish: Wish, loan: ModelledLoan, cached: list[BlockId], fresh: list[BlockId]
    ) -> None:
        """Uses nothing of a source that died or stands still; what stands still may write again, so
        that its blocks wait for its answer."""
        source, pool = wish.source, self._site.pool
        if source.is_frozen and not source.is_dead:
            again = partial(self._land, wish, loan, cached, fresh)
            source.when_answers(partial(self._site.post, 0.0, again))
            return
        loan.said(Word.WRITTEN)
        loan.arrived(Word.WRITTEN)
        self._forget(wish)
        taken = cached + fresh
        if source.is_dead or wish.is_over or not wish.is_wanted():
            self._compute.release(taken)
        else:
            pool.store(self._hashes(wish), taken, len(cached))
            wish.sequence.block_table = taken
            self._site.world.ledger.num_fetched_tokens += len(fresh) * pool.block_size
        self._end(wish)

    def _be_late(self, wish: Wish) -> None:
        wish.timer = None
        self._site.post(0.0, partial(self._fail, wish))

    def _fail(self, wish: Wish) -> None:
        if not wish.is_over:
            self._site.world.ledger.num_failed_fetches += 1
            self._end(wish)

    def _end(self, wish: Wish) -> None:
        """Its prompt goes on, and so do those that wanted the same."""
        if wish.is_over:
            return
        wish.is_over = True
        if wish.timer is not None:
            self._site.world.agenda.cancel(wish.timer)
        waiting = self._locks.pop(wish.lock)
        if wish.is_wanted():
            wish.then()
        for each in waiting:
            if each.is_wanted():
                self._await(each)

    def _forget(self, wish: Wish) -> None:
        """Nothing of it is on its way any more."""
        if wish in self._begun:
            del self._begun[wish]
            self._let_go(wish)

    # -- inside ------------------------------------------------------------------------------

    @property
    def _now_s(self) -> float:
        return self._site.world.agenda.now_s

    def _hashes(self, wish: Wish) -> Hashes[GrainHash]:
        """Hashes what may be reused: all but the last token."""
        return wish.sequence.hashes(wish.sequence.num_tokens - 1, self._site.pool.hash_grain)

    def _num_cached(self, hashes: Hashes[GrainHash]) -> int:
        """Leading grains."""
        pool = self._site.pool
        num_blocks = len(pool.match(hashes, len(hashes) * pool.hash_grain))
        return num_blocks * pool.block_size // pool.hash_grain

    def _let_go(self, wish: Wish) -> None:
        source, message_s = wish.source, self._site.world.setting.message_s
        if not source.is_dead:
            source.post(message_s, partial(source.give_back, wish.found))
