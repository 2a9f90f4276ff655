"""Workers with caches, and routers that follow them over streams that lose, repeat and reorder.

Everything between a worker's log and a router's index is the real code, bytes included; only
the streams are lists, and the moments at which something happens are drawn.
"""

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from cluster.codec import load_report_to_pb
from cluster.errors import WorkerLost
from cluster.events import EventLog
from cluster.types import CacheChange, GrainHash, Incarnation, LoadReport, WorkerId
from cluster.watch import UNKNOWN, catch_up
from penstock.v1 import worker_pb2
from router.index import PrefixIndex
from router.pool import Pool
from router.speculation import Expectation, Speculation
from router.watcher import Watcher
from tests.router.pool_samples import by_worker, matched

NUM_GRAINS = 24
PART_BYTES = 3 * 16
REPORT = load_report_to_pb(LoadReport())


def grain(number: int) -> GrainHash:
    return GrainHash(number.to_bytes(16, "little"))


GRAINS = [grain(number) for number in range(NUM_GRAINS)]
PROMPTS = [GRAINS[start : start + 8] for start in (0, 4, 12)]


@dataclass(slots=True, eq=False)
class Worker:
    """Its cache is the truth."""

    worker_id: WorkerId
    num_lives: int = 0
    cache: set[GrainHash] = field(default_factory=set)
    log: EventLog = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    @property
    def incarnation(self) -> Incarnation:
        return Incarnation(f"life-{self.num_lives}")

    def restart(self) -> None:
        self.num_lives += 1
        self.cache = set()
        self.log = EventLog(self.incarnation, capacity=4, max_grains=30)

    def toggle(self, grains: list[GrainHash]) -> None:
        """Stores those that it has not, evicts those that it has."""
        toggled = set(grains)
        stored, evicted = toggled - self.cache, toggled & self.cache
        self.cache ^= toggled
        self.log.append(CacheChange(stored=tuple(stored), evicted=tuple(evicted)))


class Stream:
    """One router's watch of one life of a worker, and what of it is under way."""

    def __init__(self, router: "Router", worker: Worker) -> None:
        self.worker = worker
        self.log = worker.log
        address = SimpleNamespace(worker_id=worker.worker_id, incarnation=worker.incarnation)
        link: Any = SimpleNamespace(worker=address)
        self.watcher = Watcher(link, router.index, router.pool, lambda: 0.0)
        self.under_way: list[bytes] = []
        self.number = UNKNOWN
        self.begin()

    def begin(self) -> None:
        """As after a broken connection: what was under way is lost."""
        self.under_way.clear()
        request = self.watcher.request()
        is_known = request.incarnation == self.log.incarnation
        self.number = request.after_number if is_known else UNKNOWN

    def send_changes(self) -> None:
        while self.number != self.log.number:
            messages, self.number = catch_up(self.log, self.number, part_bytes=PART_BYTES)
            self.under_way += [message.SerializeToString() for message in messages]

    def send_load(self) -> None:
        """As a worker does: behind all that it has to tell."""
        self.send_changes()
        message = worker_pb2.WatchResponse(load=REPORT, number=self.number)
        self.under_way.append(message.SerializeToString())

    def deliver(self) -> bool:
        """The next message. After one that reveals a gap the stream begins anew."""
        if not self.under_way:
            return True
        message = worker_pb2.WatchResponse.FromString(self.under_way.pop(0))
        is_whole = self.watcher.take(message)
        if not is_whole:
            self.watcher.start_anew()
            self.begin()
        return is_whole

    def quiesce(self) -> None:
        """Nothing happens any more, and nothing is lost."""
        for _ in range(3):  # a gap to find, a snapshot, and one to spare
            self.send_load()
            while self.under_way:
                self.deliver()


class Router:
    def __init__(self, workers: list[Worker]) -> None:
        self.index = PrefixIndex(1 << 20)
        self.pool = Pool()
        self.speculation = Speculation(self.index.numbering, lapse_s=1000.0)
        self.placed: list[Expectation] = []
        self.streams: dict[WorkerId, Stream] = {}
        for worker in workers:
            self.follow(worker)

    def follow(self, worker: Worker) -> None:
        """A life of it registers; what was known of the one before is forgotten."""
        if stream := self.streams.get(worker.worker_id):
            self.speculation.forget(worker.worker_id)
            self.index.purge(worker.worker_id, stream.log.incarnation)
        self.streams[worker.worker_id] = Stream(self, worker)


class World:
    """`step` lets one thing happen that `random` draws; `quiesce` lets all be told."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.workers = [Worker(WorkerId(name)) for name in "abc"]
        self.routers = [Router(self.workers) for _ in range(self.random.choice((1, 1, 2)))]
        self.now = 0.0
        self.num_gaps = 0

    def step(self) -> None:
        self.now += 1.0
        draw = self.random.random()
        if draw < 0.35:
            self._change()
        elif draw < 0.9:
            self._happen_on_a_stream()
        elif draw < 0.96:
            self._place()
        elif draw < 0.98:
            self._restart_worker()
        else:
            number = self.random.randrange(len(self.routers))
            self.routers[number] = Router(self.workers)

    def quiesce(self) -> None:
        self.now += 1e6
        for router in self.routers:
            for stream in router.streams.values():
                stream.quiesce()

    def check(self) -> None:
        """Every router knows of every grain exactly who holds it; nothing is expected."""
        for router in self.routers:
            router.index.check()
            for each in GRAINS:
                holders = {w.worker_id for w in self.workers if each in w.cache}
                assert set(matched(router.index, [each])) == holders
            for prompt in PROMPTS:
                ends = router.index.match(prompt)
                assert by_worker(router.index.numbering, ends) == self._matched(prompt)
                assert router.speculation.match(prompt, ends, self.now) == {}
            router.speculation.check()

    def _matched(self, prompt: list[GrainHash]) -> dict[WorkerId, int]:
        matched = {}
        for worker in self.workers:
            depth = 0
            while depth < len(prompt) and prompt[depth] in worker.cache:
                depth += 1
            if depth:
                matched[worker.worker_id] = depth
        return matched

    def _change(self) -> None:
        grains = self.random.choice(
            (self.random.sample(GRAINS, self.random.randrange(1, 9)), self.random.choice(PROMPTS))
        )
        self.random.choice(self.workers).toggle(grains)

    def _happen_on_a_stream(self) -> None:
        router = self.random.choice(self.routers)
        stream = self.random.choice(list(router.streams.values()))
        under_way = stream.under_way
        match self.random.randrange(12):
            case 0 | 1 | 2:
                stream.send_changes()
            case 3:
                stream.send_load()
            case 4 if under_way:  # lost
                del under_way[self.random.randrange(len(under_way))]
            case 5 if under_way:  # repeated
                repeated = self.random.choice(under_way)
                under_way.insert(self.random.randrange(len(under_way) + 1), repeated)
            case 6 if len(under_way) > 1:  # reordered
                self.random.shuffle(under_way)
            case 7:
                stream.begin()
            case _:
                self._deliver(router, stream)

    def _deliver(self, router: Router, stream: Stream) -> None:
        try:
            self.num_gaps += not stream.deliver()
        except WorkerLost:
            raise AssertionError("a stream told of another life") from None

    def _place(self) -> None:
        router = self.random.choice(self.routers)
        speculation, placed = router.speculation, router.placed
        match self.random.randrange(4):
            case 0 if placed:
                speculation.settle(self.random.choice(placed))
            case 1 if placed:
                speculation.computed(self.random.choice(placed), self.now)
            case _:
                worker = self.random.choice(self.workers)
                prompt = self.random.choice(PROMPTS)
                placed.append(speculation.expect(worker.worker_id, prompt, self.now))

    def _restart_worker(self) -> None:
        worker = self.random.choice(self.workers)
        worker.restart()
        for router in self.routers:
            router.follow(worker)
