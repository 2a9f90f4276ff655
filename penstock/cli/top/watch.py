"""Looks at routers, and at each worker that they name, again and again: who does not answer delays
nobody, and is shown with since when."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from cluster.addresses import Endpoint
from cluster.errors import ConfigError
from cluster.metrics.labels import MAX_WORKERS
from penstock.cli.top.concerns import Concern, concerns
from penstock.cli.top.router_figures import (
    TURNS,
    RouterFigures,
    TrafficWindow,
    Turn,
    router_figures,
    turn,
)
from penstock.cli.top.samples import NotMetrics, printable, samples
from penstock.cli.top.scrape import OPENLY, Access, ScrapeFailed, Url, fetch
from penstock.cli.top.track import Scrape, Track
from penstock.cli.top.workers import WorkerFigures, WorkerHealth, worker_figures

HISTORY_S: Final = 300.0  # that sparklines show, and that a change of policy is seen in
_LEFT_S: Final = 60.0  # so long who has left is shown
_TIMEOUT_S: Final = 3.0  # of one page
_MAX_LOOKS: Final = 600  # that are remembered


class Pace(NamedTuple):
    """How often pages are read, and over what figures are differences."""

    interval_s: float = 2.0
    window_s: float = 10.0


@dataclass(slots=True, eq=False)
class Watched:
    """One process that is looked at."""

    url: Url
    track: Track
    name: str = ""
    role: str = ""
    failed_at: float | None = None  # since then it does not answer
    error: str = ""
    left_at: float | None = None  # since then no router lists it
    history: deque[WorkerFigures] = field(default_factory=deque)
    names: frozenset[str] = frozenset()  # whom this router lists
    is_followed: bool = False


class Unheard(NamedTuple):
    """A router that does not answer."""

    url: str
    since_s: float
    error: str


class View(NamedTuple):
    """All that a screen shows of the cluster at one moment."""

    router: RouterFigures
    workers: list[WorkerFigures]
    concerns: list[Concern]
    turn: Turn | None
    unheard: list[Unheard]


class Watch:
    def __init__(
        self,
        routers: Sequence[Url],
        pace: Pace,
        *,
        access: Access = OPENLY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`access` is to the routers alone."""
        self.pace = pace
        self._access = access
        self._clock = clock
        self.routers = [Watched(url, Track(HISTORY_S, TURNS)) for url in routers]
        self.workers: dict[str, Watched] = {}
        self.traffic: deque[TrafficWindow] = deque(maxlen=self._num_looks)  # of all routers

    @property
    def _num_looks(self) -> int:
        return min(_MAX_LOOKS, max(2, int(HISTORY_S / self.pace.interval_s)))

    async def look(self) -> None:
        """Looks at everybody once."""
        await asyncio.gather(*(self._look_at_router(each) for each in self.routers))
        await asyncio.gather(*(self._look_at_worker(each) for each in self.workers.values()))

    async def run(self) -> None:
        """Looks until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for router in self.routers:
                tasks.create_task(self._follow_router(router, tasks))

    def view(self) -> View:
        now = self._clock()
        tracks = [each.track for each in self.routers]
        router = router_figures(tracks, self.pace.window_s)
        workers = [self._figures(each, now) for each in self.workers.values()]
        return View(
            router=router,
            workers=workers,
            concerns=concerns(workers, router),
            turn=turn(tracks),
            unheard=[
                Unheard(str(each.url), now - each.failed_at, each.error)
                for each in self.routers
                if each.failed_at is not None
            ],
        )

    async def _follow_router(self, router: Watched, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._look_at_router(router)
            for worker in self.workers.values():
                if not worker.is_followed:
                    worker.is_followed = True
                    tasks.create_task(self._follow_worker(worker))
            await asyncio.sleep(self.pace.interval_s)

    async def _follow_worker(self, worker: Watched) -> None:
        while self.workers.get(worker.name) is worker:
            await self._look_at_worker(worker)
            await asyncio.sleep(self.pace.interval_s)

    async def _look_at_router(self, router: Watched) -> None:
        where = router.url.beside(f"{router.url.path}/targets")
        if await self._look_at(router, self._access):
            if router is self.routers[0]:
                tracks = [each.track for each in self.routers]
                self.traffic.append(router_figures(tracks, self.pace.window_s).traffic)
            try:
                page = await fetch(where, timeout_s=_TIMEOUT_S, access=self._access)
                targets = list(_targets(page))
            except ScrapeFailed as error:
                self._failed(router, f"{where}: {error}")
            else:
                router.names = frozenset(each.name for each in targets)
                self._take(targets)

    async def _look_at_worker(self, worker: Watched) -> None:
        if worker.left_at is None and await self._look_at(worker):
            worker.history.append(self._figures(worker, self._clock()))

    async def _look_at(self, watched: Watched, access: Access = OPENLY) -> bool:
        """Tells whether it answered."""
        asked = watched.url
        try:
            page = await fetch(asked, timeout_s=_TIMEOUT_S, access=access)
            found = samples(page)
        except ScrapeFailed as error:
            self._failed(watched, str(error))
            return False
        except NotMetrics as error:
            self._failed(watched, f"what it tells is of no use: {error}")
            return False
        if watched.url != asked:
            return False  # it listens elsewhere by now: that was its life before
        watched.failed_at, watched.error = None, ""
        watched.track.add(Scrape(self._clock(), found))
        return True

    def _failed(self, watched: Watched, why: str) -> None:
        watched.error = printable(why)
        if watched.failed_at is None:
            watched.failed_at = self._clock()

    def _take(self, targets: "Sequence[_Listed]") -> None:
        """Takes what a router says of who is there. Whom none lists is shown for a while."""
        now = self._clock()
        names = frozenset[str]().union(*(each.names for each in self.routers))
        for target in targets:
            worker = self.workers.get(target.name)
            if worker is None:
                track, past = (
                    Track(self.pace.window_s),
                    deque[WorkerFigures](maxlen=self._num_looks),
                )
                worker = Watched(target.url, track, target.name, history=past)
                self.workers[target.name] = worker
            elif worker.url != target.url:
                worker.url = target.url
                worker.track.forget()
            worker.role, worker.left_at = target.role, None
        for name, worker in list(self.workers.items()):
            if name in names:
                continue
            worker.left_at = now if worker.left_at is None else worker.left_at
            if now - worker.left_at > _LEFT_S:
                del self.workers[name]

    def _figures(self, worker: Watched, now: float) -> WorkerFigures:
        lost = None
        if worker.left_at is not None:
            lost = (WorkerHealth.LEFT, now - worker.left_at, "no router lists it")
        elif worker.failed_at is not None:
            lost = (WorkerHealth.NO_ANSWER, now - worker.failed_at, worker.error)
        return worker_figures(worker.name, worker.role, worker.track, self.pace.window_s, lost=lost)


class _Listed(NamedTuple):
    name: str
    role: str
    url: Url


def _targets(page: str) -> Iterator[_Listed]:
    """Raises ScrapeFailed."""
    try:
        told: Any = json.loads(page)
        for each in told[:MAX_WORKERS]:
            endpoint = Endpoint.parse(str(each["targets"][0])).to_dial
            labels = each["labels"]
            name, role = str(labels["worker"]), str(labels["role"])
            if not (name + role).isprintable():
                raise ValueError("a name cannot be printed")
            yield _Listed(name, role, Url(is_tls=False, endpoint=endpoint, path="/metrics"))
    except (ValueError, TypeError, LookupError, ConfigError) as error:
        raise ScrapeFailed(f"its list of workers cannot be read: {error}") from error
