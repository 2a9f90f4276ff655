"""Who answers is told of at once, whatever the others do."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from penstock.cli.top import scrape, watch
from penstock.cli.top.scrape import Access, ScrapeFailed, Url, fetch
from penstock.cli.top.watch import Pace, Watch
from penstock.cli.top.workers import WorkerFigures, WorkerHealth
from tests.penstock.top.certificates import self_signed
from tests.penstock.top.served import ServedCluster, served


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def watching(cluster: ServedCluster, clock: Clock) -> Watch:
    return Watch([cluster.url], Pace(2.0, 10.0), clock=clock)


def by_name(found: Watch) -> dict[str, WorkerFigures]:
    return {each.name: each for each in found.view().workers}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - of what other tasks bring about
            await asyncio.sleep(0.01)


async def test_all_that_a_router_lists_are_looked_at() -> None:
    clock = Clock()
    async with served("prefill-0", "decode-0") as cluster:
        found = watching(cluster, clock)
        await found.look()
        clock.now += 5
        cluster.router.add(**{"penstock_generated_tokens{}": 500.0})
        cluster.workers["decode-0"].add(**{"penstock_computed_tokens{}": 50.0})
        await found.look()
        view, workers = found.view(), by_name(found)
        assert view.router.traffic.tokens_per_s == 100
        assert {name: each.role for name, each in workers.items()} == {
            "prefill-0": "prefill",
            "decode-0": "decode",
        }
        assert workers["decode-0"].tokens_per_s == 10
        assert workers["prefill-0"].num_running == 2
        assert [each.tokens_per_s for each in found.workers["decode-0"].history] == [None, 10]
        assert view.unheard == []


@pytest.mark.slow
async def test_one_that_hangs_delays_nobody_and_is_shown_with_since_when(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "_TIMEOUT_S", 0.5)
    clock = Clock()
    async with served("decode-0", "decode-1") as cluster:
        found = Watch([cluster.url], Pace(0.05, 10.0), clock=clock)
        task = asyncio.create_task(found.run())
        await until(lambda: all(each.told > 1 for each in cluster.workers.values()))
        cluster.workers["decode-0"].answers.clear()
        num, other = cluster.workers["decode-0"].told, cluster.workers["decode-1"]
        is_lost = WorkerHealth.NO_ANSWER
        await until(lambda: by_name(found)["decode-0"].health is is_lost)
        since = other.told
        await until(lambda: other.told > since + 5)
        clock.now += 30
        lost = by_name(found)["decode-0"]
        assert lost.health is is_lost
        assert (lost.since_s, lost.num_running) == (30, None)
        assert "within" in lost.error
        await until(lambda: by_name(found)["decode-1"].health is WorkerHealth.SERVING)
        cluster.workers["decode-0"].answers.set()
        await until(lambda: by_name(found)["decode-0"].health is WorkerHealth.SERVING)
        assert cluster.workers["decode-0"].told > num
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.slow
async def test_who_is_started_again_elsewhere_is_found_and_begins_anew() -> None:
    clock = Clock()
    async with served("decode-0", "decode-1") as cluster:
        found = watching(cluster, clock)
        cluster.workers["decode-0"].add(**{"penstock_computed_tokens{}": 1e9})
        await found.look()
        cluster.listed["decode-0"] = cluster.listed.pop("decode-1")
        clock.now += 2
        await found.look()
        workers = by_name(found)
        assert workers["decode-0"].tokens_per_s is None
        assert workers["decode-1"].health is WorkerHealth.LEFT
        clock.now += 2
        cluster.workers["decode-1"].add(**{"penstock_computed_tokens{}": 20.0})
        await found.look()
        assert by_name(found)["decode-0"].tokens_per_s == 10
        clock.now += 61
        await found.look()
        assert by_name(found).keys() == {"decode-0"}


async def test_while_its_router_is_away_workers_are_still_looked_at() -> None:
    clock = Clock()
    async with served("decode-0") as cluster:
        found = watching(cluster, clock)
        await found.look()
        cluster.router.text = "penstock_\x1b[2J none\n"
        clock.now += 3
        await found.look()
        clock.now += 4
        view = found.view()
        [unheard] = view.unheard
        assert (unheard.since_s, str(cluster.url)) == (4, unheard.url)
        assert "no sample: 'penstock_?[2J none'" in unheard.error
        assert by_name(found)["decode-0"].health is WorkerHealth.SERVING
        cluster.router.text = None
        await found.look()
        assert found.view().unheard == []


@pytest.mark.parametrize(
    "told",
    [
        "no JSON",
        '{"targets": 1}',
        '[{"targets": ["nowhere"], "labels": {"worker": "w", "role": "decode"}}]',
        '[{"targets": [], "labels": {"worker": "w", "role": "decode"}}]',
        '[{"targets": ["127.0.0.1:1"], "labels": {}}]',
        '[{"targets": ["127.0.0.1:1"], "labels": {"worker": "\\u001b[2J", "role": "decode"}}]',
        "[1]",
    ],
)
async def test_a_list_that_is_none_is_told_and_nobody_of_it_is_asked(told: str) -> None:
    async with served("decode-0") as cluster:
        found = watching(cluster, Clock())
        cluster.targets_text = told
        await found.look()
        [unheard] = found.view().unheard
        assert "list of workers cannot be read" in unheard.error
        assert by_name(found) == {}


async def answering(
    data: bytes, tls: ssl.SSLContext | None = None
) -> tuple[asyncio.Server, Url, list[bytes]]:
    heard = list[bytes]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(data)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    scheme = "https" if tls else "http"
    return server, Url.parse(f"{scheme}://127.0.0.1:{port}/a/metrics"), heard


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\n\r\nno", "--api-key"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "it answers 503"),
        (b"SSH-2.0-OpenSSH\r\n", "does not speak HTTP"),
        (b"", "where it speaks TLS say https"),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 5000, "larger than"),
    ],
)
async def test_what_is_no_page_says_why(
    data: bytes, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "MAX_BYTES", 4096)
    server, url, _ = await answering(data)
    async with server:
        with pytest.raises(ScrapeFailed, match=why):
            await fetch(url, timeout_s=5)


async def test_by_tls_only_whom_the_reader_believes_is_asked(tmp_path: Path) -> None:
    shown = self_signed(tmp_path)
    server, url, heard = await answering(b"HTTP/1.0 200 OK\r\n\r\nhello", shown.context)
    async with server:
        with pytest.raises(ScrapeFailed, match=r"not believed, .*--ca-file"):
            await fetch(url, timeout_s=5, access=Access("Bearer sesame"))
        assert heard == []
        believing = Access.of("Bearer sesame", shown.file)
        assert await fetch(url, timeout_s=5, access=believing) == "hello"
        assert b"sesame" in heard[0]
    with pytest.raises(ConfigError, match="no file of certificates"):
        Access.of("", tmp_path / "nowhere.pem")


async def test_nobody_there_says_so() -> None:
    server, url, _ = await answering(b"")
    server.close()
    await server.wait_closed()
    with pytest.raises(ScrapeFailed, match="nobody listens there"):
        await fetch(url, timeout_s=5)


async def test_a_key_is_shown_to_the_router_and_to_no_worker() -> None:
    worker, there, heard_by_worker = await answering(b"HTTP/1.0 200 OK\r\n\r\n")
    router, url, heard = await answering(
        b'HTTP/1.0 200 OK\r\n\r\npenstock_build_info{part="router"} 1\n'
    )
    async with worker, router:
        found = Watch([url], Pace(), access=Access("Bearer sesame"))
        found.workers["w"] = watch.Watched(there, watch.Track(9), "w", "decode")
        await found.look()
    assert all(b"authorization: Bearer sesame\r\n" in each for each in heard)
    assert heard[0].startswith(b"GET /a/metrics HTTP/1.0\r\n")
    assert heard[1].startswith(b"GET /a/metrics/targets HTTP/1.0\r\n")
    assert heard_by_worker
    assert not any(b"sesame" in each for each in heard_by_worker)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("10.0.0.5:8000", "http://10.0.0.5:8000/metrics"),
        ("http://host:8000/", "http://host:8000/metrics"),
        ("https://host/a/metrics", "https://host:443/a/metrics"),
        ("http://[::1]:9000/metrics", "http://[::1]:9000/metrics"),
    ],
)
def test_an_address_may_be_short(given: str, meant: str) -> None:
    assert str(Url.parse(given)) == meant


@pytest.mark.parametrize(
    "given",
    [
        "",
        "ftp://h/metrics",
        "http://",
        "http://h:port/",
        "http://a b/",
        "http://u:p@h/",
        "http://h/\r\nx: y",
    ],
)
def test_what_is_no_address_is_refused_with_how_to_write_one(given: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        Url.parse(given)
