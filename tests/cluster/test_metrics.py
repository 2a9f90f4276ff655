"""How metrics are declared, written and served, whatever they are of."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator

import pytest

from cluster.errors import PenstockError, StartupError
from cluster.histogram import Histogram
from cluster.lateness import AttentiveClock
from cluster.metrics.exposition import Registry
from cluster.metrics.metric import Alias, Kind, Label, Metric, Series, value
from cluster.metrics.process import PROCESS, ServingProcess
from cluster.metrics.server import MetricsServer, metrics_pages
from router.http.errors import HttpRefusal
from router.metrics.table import REASONS, ROUTER
from tests.scraped import Told, exchanged, fetched, scraped, told
from worker.metrics import WORKER

TABLES = {"router": ROUTER, "worker": WORKER, "process": PROCESS}
HOSTILE = ['a"b', "a\nb", "a\\b", "{x}", "☃" * 500, "\x00"]


def of(name: str) -> Metric[dict[str, float]]:
    """A gauge with a label of names, at most four."""
    return Metric(
        name=name,
        kind=Kind.GAUGE,
        help="Of a test.",
        labels=(Label("worker", at_most=4),),
        read=lambda given: (Series((key,), number) for key, number in given.items()),
    )


def registry(*metrics: Metric[dict[str, float]], **values: float) -> Registry[dict[str, float]]:
    process = ServingProcess(part="router", model="m", attention=AttentiveClock())
    return Registry(metrics, lambda: values, process)


async def text_of(found: Registry[dict[str, float]]) -> Told:
    return told((await found.text()).decode())


@pytest.mark.parametrize("table", TABLES)
def test_names_are_those_of_prometheus(table: str) -> None:
    for metric in TABLES[table]:
        words = metric.name.split("_")
        assert not {"ms", "us", "milliseconds", "mb", "kb", "percent", "perc"} & set(words)
        if metric.kind is Kind.HISTOGRAM:
            assert words[-1] in ("seconds", "bytes", "tokens")
        for label in metric.labels:
            assert label.name not in ("le", "job", "instance")


def test_each_metric_stands_in_one_table() -> None:
    names = [metric.name for table in TABLES.values() for metric in table]
    aliases = [
        alias.name for table in TABLES.values() for metric in table for alias in metric.aliases
    ]
    assert len(names) == len(set(names))
    assert len(aliases) == len(set(aliases)), "served by routers and workers, a sum would be wrong"


def test_every_reason_of_an_error_may_be_a_label() -> None:
    def leaves(error: type[PenstockError]) -> Iterator[type[PenstockError]]:
        yield error
        for each in error.__subclasses__():
            yield from leaves(each)

    ours = [each for each in leaves(PenstockError) if not each.__module__.startswith("tests.")]
    assert HttpRefusal in ours
    assert {each.reason for each in ours} <= set(REASONS)


async def test_a_name_that_is_no_name_is_written_so_that_it_is_read_back() -> None:
    for hostile in HOSTILE:
        found = await text_of(registry(of("penstock_test"), **{hostile: 1.0}))
        assert found("penstock_test", worker=hostile[:128]) == 1.0


async def test_what_is_beyond_a_labels_bound_is_left_out_and_counted() -> None:
    names = {f"w{number}": 1.0 for number in range(10)}
    found = await text_of(registry(of("penstock_test"), **names))
    assert found.total("penstock_test") == 4
    assert found("penstock_dropped_series") == 6


async def test_a_value_that_is_not_listed_is_left_out_and_counted() -> None:
    listed: Metric[dict[str, float]] = Metric(
        name="penstock_test",
        kind=Kind.COUNTER,
        help="Of a test.",
        labels=(Label("reason", ("good",)),),
        read=lambda given: (Series((key,), number) for key, number in given.items()),
    )
    found = await text_of(registry(listed, good=1.0, evil=2.0))
    assert found.labels("penstock_test_total") == {"good"}
    assert found("penstock_dropped_series") == 1


async def test_a_histogram_is_cumulative_and_its_other_name_says_the_same() -> None:
    counted = Histogram((0.1, 1.0))
    for seconds, times in ((0.1, 1), (0.5, 3), (7.0, 1)):
        counted.add(seconds, times)
    metric: Metric[dict[str, float]] = Metric(
        name="penstock_test_seconds",
        kind=Kind.HISTOGRAM,
        help="Of a test.",
        read=value(lambda _: counted.report()),
        aliases=(Alias("vllm:test_seconds"),),
    )
    found = await text_of(registry(metric))
    theirs = {"model_name": "m", "engine": "0"}
    for name, more in (("penstock_test_seconds", {}), ("vllm:test_seconds", theirs)):
        counts = [found(f"{name}_bucket", le=le, **more) for le in ("0.1", "1.0", "+Inf")]
        assert counts == [1, 4, 5]
        assert found(f"{name}_count", **more) == 5
        assert math.isclose(found(f"{name}_sum", **more), 8.6)


async def test_others_have_their_turn_while_much_is_written() -> None:
    turns = 0

    async def pause() -> None:
        nonlocal turns
        turns += 1

    process = ServingProcess(part="router", model="m", attention=AttentiveClock())
    many = [of(f"penstock_test_{number}") for number in range(2000)]
    found = Registry(many, lambda: {"a": 1.0}, process, pause=pause)
    assert told((await found.text()).decode()).total("penstock_test_1999") == 1
    assert turns > 5


@pytest.fixture
async def server() -> AsyncIterator[MetricsServer]:
    pages = metrics_pages(registry(of("penstock_test"), a=1.0))
    async with MetricsServer(pages, address="127.0.0.1:0") as running:
        yield running


async def test_who_scrapes_gets_all(server: MetricsServer) -> None:
    assert (await scraped(server.address))("penstock_test", worker="a") == 1.0
    status, body = await fetched(server.address, method="HEAD")
    assert (status, body) == (200, "")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"\x16\x03\x01\r\n\r\n", 405),
        (b"GET /metrics?name=x HTTP/1.1\r\n\r\n", 200),
    ],
)
async def test_strangers_are_told_what_there_is(
    server: MetricsServer, said: bytes, status: int
) -> None:
    assert (await exchanged(server.address, said)).startswith(f"HTTP/1.1 {status} ")


async def test_who_says_too_much_is_left(server: MetricsServer) -> None:
    try:
        answer = await exchanged(server.address, b"GET /metrics HTTP/1.1\r\nx: " + b"a" * 20_000)
    except ConnectionError:
        answer = ""
    assert answer == ""
    await scraped(server.address)


async def test_silent_connections_take_a_few_places_and_end_with_the_server(
    server: MetricsServer,
) -> None:
    host, _, port = server.address.rpartition(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(16)]
    # The one beyond is let go at once, and says nothing of it to the others.
    with pytest.raises((IndexError, ConnectionError)):
        await fetched(server.address)
    silent[0][1].close()
    async with asyncio.timeout(10):
        while not await answers(server.address):  # noqa: ASYNC110 - of a server, from outside
            await asyncio.sleep(0.01)
    for _, writer in silent:
        writer.close()


async def answers(address: str) -> bool:
    try:
        return (await fetched(address))[0] == 200
    except (IndexError, ConnectionError):
        return False


async def test_a_port_that_is_taken_is_said_with_what_to_do(server: MetricsServer) -> None:
    with pytest.raises(StartupError, match="null for none"):
        async with MetricsServer({}, address=server.address):
            pass
