"""Who serves, who does not and why; and what a burst weighs before anybody reports it."""

import pytest

from cluster.types import (
    Direction,
    HistogramReport,
    Incarnation,
    LinkCost,
    LoadReport,
    PairReport,
    Role,
    WorkerId,
)
from router.load import Load
from router.pool import Booking, Pool
from tests.router.pool_samples import member

D0, P0 = WorkerId("d0"), WorkerId("p0")
LIFE = Incarnation("1")


def booking(request_id: str, prefill: WorkerId | None = P0) -> Booking:
    return Booking(
        request_id=request_id,
        decode=D0,
        prefill=prefill,
        num_prefill_tokens=300,
        num_context_tokens=400,
        prefill_s=0.5,
    )


def live_pool() -> Pool:
    pool = Pool()
    for name, role in (("d0", Role.DECODE), ("p0", Role.PREFILL)):
        pool.join(member(name, role))
        pool.report(WorkerId(name), LIFE, LoadReport(num_free_blocks=100, num_blocks=100), 10.0)
    return pool


def loads(pool: Pool, now: float = 10.1) -> tuple[Load, Load]:
    prefill, decode = pool.snapshot(now).loads
    return decode, prefill


def refusals(pool: Pool, now: float) -> dict[str, str]:
    return {refusal.worker: refusal.reason for refusal in pool.refusals(now)}


def test_a_member_serves_from_its_first_report_until_it_falls_silent() -> None:
    pool = Pool()
    pool.join(member("d0"))
    assert refusals(pool, 10.0) == {"d0": "no report yet"}
    pool.report(D0, LIFE, LoadReport(), 10.0)
    assert pool.is_serving(10.99)
    assert refusals(pool, 11.4) == {"d0": "no report for 1.4 s"}
    assert not pool.is_serving(11.4)
    pool.report(D0, LIFE, LoadReport(), 11.5)
    assert pool.is_serving(11.5)


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (LoadReport(is_draining=True, is_serving=False), "draining"),
        (LoadReport(is_serving=False, step_age_s=3.0), "no progress: its step has run for 3.0 s"),
        (LoadReport(is_serving=False), "not ready yet: it has just started"),
    ],
)
def test_a_worker_that_says_it_does_not_serve_is_believed(report: LoadReport, reason: str) -> None:
    pool = live_pool()
    pool.report(D0, LIFE, report, 10.0)
    assert refusals(pool, 10.1) == {"d0": reason}


def test_a_failed_worker_is_left_alone_for_longer_each_time_and_forgiven_by_a_token() -> None:
    pool = live_pool()
    pool.fail(D0, 10.0)
    assert refusals(pool, 10.1) == {"d0": "failed 0.1 s ago"}
    assert refusals(pool, 10.3) == {}
    pool.fail(D0, 10.3)
    assert "d0" in refusals(pool, 10.7)
    booked = booking("r")
    pool.book(booked)
    pool.begun(booked)
    assert refusals(pool, 10.7) == {}


def test_a_broken_stream_ends_service_at_once_and_the_next_report_restores_it() -> None:
    pool = live_pool()
    pool.unreachable(D0, LIFE, 10.0)
    assert refusals(pool, 10.0) == {"d0": "unreachable"}
    pool.report(D0, LIFE, LoadReport(), 10.1)
    assert refusals(pool, 10.1) == {}


def test_a_placed_request_weighs_until_a_report_contains_it() -> None:
    pool = live_pool()
    pool.book(booking("r"))
    decode, prefill = loads(pool)
    assert (decode.num_waiting, decode.num_context_tokens) == (1, 400)
    assert decode.num_free_tokens == 1200
    assert decode.booked_s == 0.0
    assert (prefill.num_waiting, prefill.num_prefill_tokens, prefill.booked_s) == (1, 300, 0.5)
    pool.report(P0, LIFE, LoadReport(num_waiting=1, request_ids=("r",)), 10.1)
    pool.report(D0, LIFE, LoadReport(num_waiting=1, request_ids=("other",)), 10.1)
    decode, prefill = loads(pool)
    assert (prefill.num_waiting, prefill.booked_s) == (1, 0.0), "the report has it"
    assert decode.num_waiting == 2
    pool.check()


def test_an_answer_that_has_ended_is_not_counted_until_the_next_report() -> None:
    pool, booked, short = live_pool(), booking("r"), booking("short")
    pool.book(booked)
    busy = LoadReport(num_running=2, num_context_tokens=900, request_ids=("r",))
    pool.report(D0, LIFE, busy, 10.1)
    assert loads(pool)[0].num_running == 2
    pool.release(booked)
    assert (loads(pool)[0].num_running, loads(pool)[0].num_context_tokens) == (1, 500)
    pool.report(D0, LIFE, LoadReport(num_running=1, num_context_tokens=510), 10.3)
    assert (loads(pool)[0].num_running, loads(pool)[0].num_context_tokens) == (1, 510)
    pool.book(short)
    pool.release(short)
    pool.report(D0, LIFE, LoadReport(num_running=2, request_ids=("short",)), 10.5)  # overtaken
    assert loads(pool)[0].num_running == 1
    pool.report(D0, LIFE, LoadReport(num_running=1, request_ids=("short",)), 10.7)
    assert loads(pool)[0].num_running == 1
    pool.check()


def test_a_local_prefill_is_booked_on_the_decode_worker() -> None:
    pool = live_pool()
    pool.book(booking("r", prefill=None))
    decode, prefill = loads(pool)
    assert (decode.booked_s, prefill.booked_s) == (0.5, 0.0)


def test_the_first_token_ends_the_prefill_and_the_end_ends_everything() -> None:
    pool, booked = live_pool(), booking("r")
    pool.book(booked)
    pool.begun(booked)
    decode, prefill = loads(pool)
    assert prefill.booked_s == 0.0
    assert decode.num_waiting == 1
    assert pool.num_in_flight == 1
    pool.release(booked)
    decode, _ = loads(pool)
    assert decode.num_waiting == 0
    assert pool.num_in_flight == 0
    pool.check()


def test_a_new_life_starts_without_a_past() -> None:
    pool, booked = live_pool(), booking("r")
    pool.fail(D0, 10.0)
    pool.book(booked)
    pool.join(member("d0", life="2"))
    pool.report(D0, LIFE, LoadReport(), 10.1)  # a late report of the earlier life
    assert refusals(pool, 10.1) == {"d0": "no report yet"}
    pool.report(D0, Incarnation("2"), LoadReport(), 10.1)
    decode, _ = loads(pool)
    assert decode.num_waiting == 0
    pool.release(booked)
    pool.leave(D0, LIFE)  # late, too
    assert pool.address(D0) is not None
    pool.leave(D0, Incarnation("2"))
    assert pool.address(D0) is None
    pool.check()


def test_pairs_told_last_are_shown_while_reports_leave_them_out() -> None:
    pool = Pool()
    pool.join(member("d"))
    pair = PairReport(
        peer=WorkerId("p"),
        direction=Direction.RECEIVED,
        transport="tcp",
        num_transfers=1,
        num_bytes=1,
        num_spans=0,
        write_seconds=HistogramReport(bounds=(), counts=(1,), sum=1.0),
        verify_s=0.0,
    )
    shown = []
    for pairs in ((pair,), None, ()):
        pool.report(WorkerId("d"), Incarnation("1"), LoadReport(pairs=pairs), 0.0)
        shown.append(next(iter(pool.statuses(0.0))).report.pairs)
    assert shown == [(pair,), (pair,), ()]


def test_statuses_count_what_is_in_flight_by_worker() -> None:
    pool = live_pool()
    pool.book(booking("remote"))
    pool.book(booking("local", prefill=None))
    counts = {status.member.worker.worker_id: status.num_in_flight for status in pool.statuses(10)}
    assert counts == {D0: 2, P0: 1}


def test_links_told_by_a_receiver_price_its_pairs_and_small_changes_copy_nothing() -> None:
    pool = live_pool()
    first = pool.snapshot(10.1).costs
    pool.report(
        D0, LIFE, LoadReport(links=(LinkCost(peer=P0, setup_s=0.2, s_per_byte=1e-8),)), 10.2
    )
    told = pool.snapshot(10.2).costs
    assert told.seconds(1, 0, 1e8) == pytest.approx(1.2)
    assert told.seconds(0, 1, 0) == first.seconds(0, 1, 0), "the other way is another pair"
    assert first.seconds(1, 0, 0) != 0.2, "a snapshot is frozen"
    near = LinkCost(peer=P0, setup_s=0.201, s_per_byte=1e-8)
    pool.report(D0, LIFE, LoadReport(links=(near,)), 10.3)
    assert pool.snapshot(10.3).costs is told
    pool.report(D0, LIFE, LoadReport(links=None), 10.4)
    pool.leave(P0, LIFE)
    pool.join(member("p0", Role.PREFILL, life="2"))
    pool.report(P0, Incarnation("2"), LoadReport(), 10.5)
    assert pool.snapshot(10.5).costs.seconds(1, 0, 0) == pytest.approx(0.201)


def test_a_snapshot_shares_what_did_not_change_and_is_frozen() -> None:
    pool = live_pool()
    before = pool.snapshot(10.1)
    assert pool.snapshot(10.2).loads is before.loads
    pool.book(booking("r"))
    after = pool.snapshot(10.3)
    assert after.loads[0].booked_s == after.loads.columns.booked_s[0] == 0.5
    assert before.loads[0].booked_s == before.loads.columns.booked_s[0] == 0.0
