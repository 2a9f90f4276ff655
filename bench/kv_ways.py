"""Ways to move the spans of a turn, timed one after the other: transports and their yardsticks."""

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from bench.kv_cases import Turns
from kv_transfer.transport import Landed, Peer

EPOCH = 1
LEAST_ROUNDS = 3


class KvWay(Protocol):
    @property
    def name(self) -> str: ...

    def move(self, turns: Turns, turn: int) -> float:
        """Seconds from the wish to the news that the bytes are in the destination."""
        ...

    def close(self) -> None: ...


class TransportWay:
    """A door, as a hand-over drives it: its future calls back when the bytes have landed."""

    def __init__(self, peer: Peer, *, digest: bool) -> None:
        self.name = peer.transport + (" + digest" if digest else "")
        self.landed: Landed | None = None
        self._peer = peer
        self._digest = digest

    def move(self, turns: Turns, turn: int) -> float:
        pairs = turns.pairs(turn)
        ended: queue.SimpleQueue[float] = queue.SimpleQueue()
        begin = time.perf_counter()
        write = self._peer.write(pairs, epoch=EPOCH, digest=self._digest, may_start=_always)
        write.add_done_callback(lambda _: ended.put(time.perf_counter()))
        seconds = ended.get() - begin
        self.landed = write.result()
        return seconds

    def close(self) -> None:
        """Its transport is closed by who opened it."""


def _always() -> bool:
    return True


@dataclass(slots=True, kw_only=True, eq=False)
class WaySamples:
    """What one way needed in one case."""

    num_bytes: int  # a move
    seconds: list[float] = field(default_factory=list)
    cpu_s: float = 0.0  # of both processes, all moves

    @property
    def median_s(self) -> float:
        return median(self.seconds)

    @property
    def gigabytes_per_s(self) -> float:
        return self.num_bytes / self.median_s / 1e9

    @property
    def cpu_s_per_gigabyte(self) -> float:
        return self.cpu_s / (self.num_bytes * len(self.seconds)) * 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How often every way has its turn, and how many moves a turn has."""

    num_rounds: int
    num_moves: int
    limit_s: float  # fewer rounds where they take longer, but LEAST_ROUNDS


def take_turns(
    ways: Sequence[KvWay], turns: Turns, rounds: Rounds, pids: Sequence[int]
) -> dict[str, WaySamples]:
    """All ways in every round, so that a busy machine slows all of them alike."""
    samples = {way.name: WaySamples(num_bytes=turns.case.num_bytes) for way in ways}
    turn, begin = 0, time.perf_counter()
    for number in range(rounds.num_rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - begin > rounds.limit_s:
            break
        for way in ways:
            mine, before = samples[way.name], cpu_seconds(pids)
            for _ in range(rounds.num_moves):
                mine.seconds.append(way.move(turns, turn))
                turn += 1
            mine.cpu_s += cpu_seconds(pids) - before
    return samples


def first_touch(way: KvWay, turns: Turns, limit_s: float) -> float:
    """Moves all of the pool once, or as much as the time allows; returns bytes a second."""
    moves: list[float] = []
    while len(moves) < turns.num_until_repeated and sum(moves) < limit_s:
        moves.append(way.move(turns, len(moves)))
    return turns.case.num_bytes * len(moves) / sum(moves)


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of processes so far, to the nanosecond, whatever they are doing."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)  # clock_getcpuclockid(3)
