"""What is told of a worker, who stands out, and in which order all stand."""

from dataclasses import replace
from typing import Any

import pytest

from penstock.cli.top.columns import BY_KEY, COLUMNS, NARROW, arranged, cells
from penstock.cli.top.concerns import concerns
from penstock.cli.top.router_figures import RouterFigures, router_figures
from penstock.cli.top.track import Track
from penstock.cli.top.workers import (
    WorkerFigures,
    WorkerHealth,
    link_figures,
    pair_figures,
    worker_figures,
)
from tests.penstock.top.told import Numbers, histogram, page, series, track

STEPS = (0.01, 0.02, 0.04)
WRITES = (0.001, 0.01, 0.1)


def pair(peer: str, num_bytes: float, writes: list[float], way: str = "received") -> Numbers:
    labels = {"peer": peer, "direction": way, "transport": "tcp"}
    return {
        series("penstock_transfer_bytes", **labels): num_bytes,
        **histogram("penstock_transfer_seconds", writes, WRITES, **labels),
    }


SERVES = {series("penstock_worker_serving"): 1.0}
BEFORE: Numbers = {
    **SERVES,
    series("penstock_reused_tokens"): 1000,
    series("penstock_computed_tokens"): 5000,
    series("penstock_sampled_tokens"): 300,
    **histogram("penstock_step_seconds", [0.005] * 50, STEPS),
    **pair("p0", 0, []),
    **pair("p1", 4e9, [0.05] * 80),
}
AFTER: Numbers = {
    **SERVES,
    series("penstock_queued_prompt_seconds"): 0.75,
    series("penstock_requests_running"): 6,
    series("penstock_requests_waiting"): 2,
    series("penstock_kv_usage_ratio"): 0.25,
    series("penstock_reused_tokens"): 1300,
    series("penstock_computed_tokens"): 5200,
    series("penstock_sampled_tokens"): 400,
    **histogram("penstock_step_seconds", [0.005] * 50 + [0.015] * 40, STEPS),
    **pair("p0", 3e9, [0.05] * 20),
    **pair("p1", 4e9, [0.05] * 80),
    series(
        "penstock_transfer_failures",
        peer="p0", direction="received", transport="tcp", phase="writing", reason="write_failed",
    ): 2,
    series(
        "penstock_transfer_failures",
        peer="p0", direction="received", transport="tcp", phase="writing", reason="cancelled",
    ): 9,
    series("penstock_link_setup_seconds", peer="p0"): 0.002,
    series("penstock_link_seconds_per_byte", peer="p0"): 1e-9 / 4,
}  # fmt: skip


@pytest.fixture
def decode() -> Track:
    return track((0, page("decode", BEFORE)), (10, page("decode", AFTER)))


def test_figures_of_a_worker_are_of_the_window(decode: Track) -> None:
    found = worker_figures("d0", "decode", decode, 10)
    assert found.health is WorkerHealth.SERVING
    assert (found.queue_s, found.num_running, found.num_waiting) == (0.75, 6, 2)
    assert found.kv_usage == 0.25
    assert found.hit_share == pytest.approx(300 / (300 + 200 - 100))
    assert found.gb_per_s == pytest.approx(3.0)  # while it moved, which it did for a second
    assert found.moved_bytes_per_s == pytest.approx(3e8)
    assert found.itl_s == pytest.approx(0.015)
    assert found.tokens_per_s == 20
    assert found.num_failed == 2  # what nobody needed any more has not failed
    assert found.version == "0.1.0"
    prefill = worker_figures("p0", "prefill", decode, 10)
    assert (prefill.itl_s, prefill.step_p50_s) == (None, pytest.approx(0.015))


def test_where_nothing_happened_nothing_is_told() -> None:
    quiet = track((0, page("decode", AFTER)), (10, page("decode", AFTER)))
    found = worker_figures("d0", "decode", quiet, 10)
    assert (found.hit_share, found.gb_per_s, found.itl_s) == (None, None, None)
    told = dict(zip(BY_KEY, cells(found), strict=True))
    assert [told[key] for key in ("hit", "gb_per_s", "itl")] == ["-", "-", "-"]
    assert told["running"] == "6"
    once = worker_figures("d0", "decode", track((0, page("decode", AFTER))), 10)
    assert (once.num_running, once.tokens_per_s) == (6, None)


def test_pairs_and_links_of_a_worker(decode: Track) -> None:
    busy, quiet = pair_figures(decode, 10)
    assert (busy.peer, busy.direction, busy.transport) == ("p0", "received", "tcp")
    assert busy.gb_per_s == pytest.approx(3.0)
    assert busy.mean_s == pytest.approx(0.05)
    assert 0.01 <= (busy.p99_s or 0) <= 0.1
    assert (busy.num_transfers, busy.num_failed) == (20, 2)
    assert (quiet.peer, quiet.gb_per_s, quiet.mean_s, quiet.num_transfers) == ("p1", None, None, 0)
    [link] = link_figures(decode)
    assert (link.peer, link.setup_s, link.gb_per_s) == ("p0", 0.002, pytest.approx(4.0))


@pytest.mark.parametrize(
    ("numbers", "health"),
    [
        ({series("penstock_worker_serving"): 1}, WorkerHealth.SERVING),
        ({series("penstock_worker_serving"): 0}, WorkerHealth.NOT_SERVING),
        (
            {series("penstock_worker_serving"): 0, series("penstock_worker_draining"): 1},
            WorkerHealth.DRAINING,
        ),
    ],
)
def test_health_is_as_the_worker_says(numbers: Numbers, health: WorkerHealth) -> None:
    assert worker_figures("d", "decode", track((0, page("decode", numbers))), 10).health is health


def test_who_does_not_answer_tells_since_when_and_no_old_figure(decode: Track) -> None:
    lost = (WorkerHealth.NO_ANSWER, 12.0, "nobody listens there")
    found = worker_figures("d0", "decode", decode, 10, lost=lost)
    assert found.num_running is None
    assert dict(zip(BY_KEY, cells(found), strict=True))["health"] == "lost 12.0 s"


def figures(name: str, role: str = "decode", **told: Any) -> WorkerFigures:
    health = told.pop("health", WorkerHealth.SERVING)
    return WorkerFigures(name=name, role=role, health=health, **told)


def nothing() -> RouterFigures:
    return router_figures([track((0, page("router", {})))], 10)


@pytest.mark.parametrize("key", BY_KEY)
def test_rows_can_be_sorted_by_any_column_either_way(key: str) -> None:
    """Those without a figure are the last, either way."""
    told = {"queue_s": 1.0, "num_running": 1, "num_waiting": 1, "kv_usage": 0.1, "hit_share": 0.1}
    told |= {"gb_per_s": 1.0, "itl_s": 0.01, "step_p99_s": 0.01}
    told |= {"tokens_per_s": 1.0, "moved_bytes_per_s": 1.0}
    low = figures("a", "decode", health=WorkerHealth.DRAINING, **told)
    high = figures("b", "prefill", **{name: 2 * each for name, each in told.items()})
    empty = figures("zz", "zz", health=WorkerHealth.UNKNOWN)
    rows = [empty, high, low]
    rising = arranged(rows, by=key, is_descending=False)
    falling = arranged(rows, by=key, is_descending=True)
    read = BY_KEY[key].read
    assert [read(each) for each in rising[:2]] == [read(low), read(high)]
    if BY_KEY[key].is_number:
        assert rising[-1] is falling[-1] is empty
        assert falling[:2] == [high, low]
    else:
        assert falling == rising[::-1]


def test_names_are_sorted_as_people_count() -> None:
    rows = [figures(f"decode-{number}") for number in (10, 9, 100, 1)]
    found = arranged(rows, by="worker", is_descending=False)
    assert [each.name for each in found] == ["decode-1", "decode-9", "decode-10", "decode-100"]


def test_rows_can_be_of_one_role() -> None:
    rows = [figures("d"), figures("p", "prefill")]
    found = arranged(rows, by="worker", is_descending=False, role="prefill")
    assert [each.name for each in found] == ["p"]


def test_a_row_fits_a_narrow_terminal() -> None:
    used = sum(each.width + 1 for each in COLUMNS[:NARROW])
    assert used <= 80 - 2  # of a scrollbar
    assert used + COLUMNS[NARROW].width - len("37.9 ms") >= 80  # no half of the next figure
    full = figures(
        "decode-1023",
        queue_s=123.4,
        num_running=1024,
        num_waiting=1024,
        kv_usage=0.999,
        hit_share=0.05,
        gb_per_s=123.4,
        itl_s=0.1234,
        step_p99_s=0.1234,
        tokens_per_s=123_456.0,
        moved_bytes_per_s=12.34e9,
    )
    for column, text in zip(COLUMNS, cells(full), strict=True):
        assert len(text) <= column.width, column.key


ALIKE = [
    figures(f"d{at}", itl_s=0.020, step_p99_s=0.03, queue_s=0.1, gb_per_s=10.0) for at in range(4)
]


def test_who_is_like_the_others_of_its_role_is_no_concern() -> None:
    slow_role = [figures(f"p{at}", "prefill", queue_s=9.0) for at in range(2)]
    assert concerns([*ALIKE, *slow_role], nothing()) == []
    assert concerns(ALIKE[:1], nothing()) == []  # there is nobody to compare it with


@pytest.mark.parametrize(
    ("told", "column", "sentence"),
    [
        ({"itl_s": 0.060}, "itl", "ITL 60.0 ms; the others 20.0 ms"),
        ({"step_p99_s": 0.3}, "itl", "ITL p99 300 ms; the others 30.0 ms"),
        ({"queue_s": 2.0}, "queue", "a queue of 2.00 s; the others 100 ms"),
        ({"gb_per_s": 1.0}, "gb_per_s", "GB/s of KV 1.00; the others 10.0"),
        ({"kv_usage": 0.97}, "kv", "its KV pool is 97 % full"),
        ({"num_failed": 3.0}, "gb_per_s", "3 transfers failed"),
    ],
)
def test_who_is_worse_than_its_like_stands_out(
    told: dict[str, float], column: str, sentence: str
) -> None:
    [found] = concerns([*ALIKE, replace(ALIKE[0], name="odd", **told)], nothing())
    assert (found.worker, found.column, found.sentence) == ("odd", column, sentence)


def test_the_worst_comes_first() -> None:
    lost = figures("lost", health=WorkerHealth.NO_ANSWER, since_s=70.0, error="nobody listens")
    drains = figures("drains", health=WorkerHealth.DRAINING)
    slow = replace(ALIKE[0], name="slow", itl_s=1.0)
    found = concerns([drains, slow, *ALIKE, lost], nothing())
    assert [each.worker for each in found] == ["lost", "slow", "drains"]
    assert found[0].sentence == "no answer for 70.0 s: nobody listens"
