"""Answers that go on without who asked for them: for a while, within bounds, and then they are
given up. Those that have ended are kept as long: what they said last may not have arrived.
"""

import asyncio
from dataclasses import dataclass, field
from math import inf
from typing import Generic, NamedTuple, Protocol, TypeVar

from cluster.lateness import AttentiveClock
from worker.kept_messages import KeptMessages


class AnswerKey(NamedTuple):
    """Whoever knows all of it goes on with an answer."""

    tenant: str
    request_id: str
    secret: bytes


class Outlived(Protocol):
    @property
    def kept(self) -> KeptMessages | None: ...

    @property
    def has_ended(self) -> bool: ...

    def give_up(self) -> None: ...


AnswerT = TypeVar("AnswerT", bound=Outlived)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grace:
    """Says for how long, and how much of it."""

    seconds: float = 15.0
    # Of what answers have said that nobody hears, and as much of those that ended: more, and the
    # oldest are given up.
    most_bytes: int = 64 << 20


DEFAULT_GRACE = Grace()


class Outliving(Generic[AnswerT]):
    def __init__(self, attention: AttentiveClock, grace: Grace) -> None:
        """In seconds in which we were there: who comes back meanwhile must be heard first."""
        self._attention = attention
        self._grace = grace
        self._by_key: dict[AnswerKey, AnswerT] = {}
        self._keys: dict[AnswerT, AnswerKey] = {}
        self._detached: _Shelf[AnswerT] = _Shelf()
        self._ended: _Shelf[AnswerT] = _Shelf()
        self._looker: asyncio.TimerHandle | None = None
        self._num_attached = 0
        self._num_given_up = 0

    def counters(self) -> dict[str, float]:
        """Gives what the load report says of them."""
        return {
            "detached_answers": len(self._detached.until),
            "answers_attached": self._num_attached,
            "answers_given_up": self._num_given_up,
        }

    @property
    def is_possible(self) -> bool:
        return self._grace.seconds > 0

    def keep(self, key: AnswerKey, answer: AnswerT) -> None:
        """Can be found from now on. Another one under the same key is the same one begun before."""
        if (before := self._by_key.get(key)) is not None:
            self._give_up(before)
        self._by_key[key], self._keys[answer] = answer, key

    def find(self, key: AnswerKey) -> AnswerT | None:
        return self._by_key.get(key)

    def leave(self, answer: AnswerT) -> None:
        """Nobody hears it, or it has ended: its time runs, if it is kept at all."""
        if answer not in self._keys or answer.kept is None:
            return
        self.take_back(answer)
        shelf = self._ended if answer.has_ended else self._detached
        shelf.put(answer, answer.kept.num_bytes, self._attention.now() + self._grace.seconds)
        while shelf.num_bytes > self._grace.most_bytes:
            self._give_up(shelf.first())
        if self._looker is None:
            self._look()

    def attached(self, answer: AnswerT) -> None:
        """Its client has come back for it."""
        self._num_attached += 1
        if not answer.has_ended:
            self.take_back(answer)

    def take_back(self, answer: AnswerT) -> None:
        """Somebody hears it again."""
        self._detached.take(answer)
        self._ended.take(answer)

    def forget(self, answer: AnswerT) -> None:
        self.take_back(answer)
        if (key := self._keys.pop(answer, None)) is not None:
            del self._by_key[key]

    def close(self) -> None:
        if self._looker is not None:
            self._looker.cancel()
            self._looker = None

    def _give_up(self, answer: AnswerT) -> None:
        self.forget(answer)
        self._num_given_up += not answer.has_ended
        answer.give_up()

    def _look(self) -> None:
        self._looker, now = None, self._attention.now()
        left_s = inf
        for shelf in (self._detached, self._ended):
            while shelf.until and (left_here_s := shelf.until[shelf.first()] - now) <= 0:
                self._give_up(shelf.first())
            if shelf.until:
                left_s = min(left_s, left_here_s)
        if left_s < inf:
            pause_s = self._attention.pause_s(left_s)
            self._looker = asyncio.get_running_loop().call_later(pause_s, self._look)


@dataclass(slots=True, eq=False)
class _Shelf(Generic[AnswerT]):
    """Answers in the order in which their time is over."""

    until: dict[AnswerT, float] = field(default_factory=dict)  # by the attentive clock
    num_bytes: int = 0  # that they have said
    _bytes: dict[AnswerT, int] = field(default_factory=dict)

    def first(self) -> AnswerT:
        return next(iter(self.until))

    def put(self, answer: AnswerT, num_bytes: int, until: float) -> None:
        self.until[answer], self._bytes[answer] = until, num_bytes
        self.num_bytes += num_bytes

    def take(self, answer: AnswerT) -> None:
        """Nothing where it is not there."""
        if self.until.pop(answer, None) is not None:
            self.num_bytes -= self._bytes.pop(answer)
