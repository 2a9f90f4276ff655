"""A router and workers that tell what a test lets them tell, over HTTP."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from cluster.metrics.server import MetricsServer, Page
from penstock.cli.top.scrape import Url
from tests.penstock.top.told import Numbers, page, series

ROUTER: Numbers = {
    series("penstock_requests", outcome="finished", reason=""): 0,
    series("penstock_generated_tokens"): 0,
    series("penstock_requests_in_flight"): 3,
    series("penstock_policy_generation", side="active"): 1,
    series("penstock_config_info", hash="abcdef0123456789", generation="1"): 1,
    series("penstock_store_up"): 1,
}
WORKER: Numbers = {
    series("penstock_worker_serving"): 1,
    series("penstock_requests_running"): 2,
    series("penstock_computed_tokens"): 0,
}


@dataclass(slots=True, eq=False)
class Telling:
    """One process: what it tells now, and whether it answers at all."""

    part: str
    numbers: dict[str, float]
    address: str = ""
    uptime_s: float = 100.0
    told: int = 0  # times that it was asked
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    text: str | None = None  # instead of a page

    async def page(self) -> bytes:
        await self.answers.wait()
        self.told += 1
        self.uptime_s += 1
        text = page(self.part, self.numbers, uptime_s=self.uptime_s)
        return (text if self.text is None else self.text).encode()

    def add(self, **more: float) -> None:
        """Lets counters rise, or gauges."""
        for name, number in more.items():
            self.numbers[name] = self.numbers.get(name, 0.0) + number


@dataclass(slots=True, eq=False)
class ServedCluster:
    router: Telling
    workers: dict[str, Telling]
    listed: dict[str, str] = field(default_factory=dict)  # addresses by name
    targets_text: str | None = None  # instead of the list

    @property
    def url(self) -> Url:
        return Url.parse(f"http://{self.router.address}/metrics")

    async def targets(self) -> bytes:
        told = [
            {
                "targets": [address],
                "labels": {"worker": name, "role": name.rpartition("-")[0]},
            }
            for name, address in self.listed.items()
        ]
        return (json.dumps(told) if self.targets_text is None else self.targets_text).encode()


@asynccontextmanager
async def served(
    *names: str, numbers: Mapping[str, Numbers] | None = None
) -> AsyncIterator[ServedCluster]:
    """`names` as decode-0; `numbers` of some of them, beside what all tell."""
    router = Telling("router", dict(ROUTER))
    workers = {
        name: Telling(name.rpartition("-")[0], {**WORKER, **(numbers or {}).get(name, {})})
        for name in names
    }
    cluster = ServedCluster(router, workers)
    async with AsyncExitStack() as stack:
        for name, each in {"": router, **workers}.items():
            each.answers.set()
            pages = {"/metrics": Page("text/plain", each.page)}
            if each is router:
                pages["/metrics/targets"] = Page("application/json", cluster.targets)
            server = await stack.enter_async_context(MetricsServer(pages, address="127.0.0.1:0"))
            each.address = server.address
            if name:
                cluster.listed[name] = server.address
        yield cluster


@contextmanager
def served_apart(
    *names: str, numbers: Mapping[str, Numbers] | None = None
) -> Iterator[ServedCluster]:
    """The same on a thread of its own, beside a command that has a loop of its own."""
    ready, found = (
        threading.Event(),
        list[tuple[ServedCluster, asyncio.AbstractEventLoop, asyncio.Event]](),
    )

    async def serve() -> None:
        async with served(*names, numbers=numbers) as cluster:
            done = asyncio.Event()
            found.append((cluster, asyncio.get_running_loop(), done))
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield found[0][0]
    finally:
        if found:
            found[0][1].call_soon_threadsafe(found[0][2].set)
        thread.join()
