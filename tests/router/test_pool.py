"""Who serves, who does not and why; and what a burst weighs before anybody reports it."""

import pytest

from cluster.types import (
    Direction,
    HistogramReport,
    Incarnation,
    LoadReport,
    PairReport,
    Role,
    WorkerId,
)
from router.pool import Booking, Pool, WorkerView
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
    )


def live_pool() -> Pool:
    pool = Pool()
    for name, role in (("d0", Role.DECODE), ("p0", Role.PREFILL)):
        pool.join(member(name, role))
        pool.report(WorkerId(name), LIFE, LoadReport(num_free_blocks=100, num_blocks=100), 10.0)
    return pool


def views(pool: Pool, now: float = 10.1) -> tuple[WorkerView, WorkerView]:
    snapshot = pool.snapshot(now)
    return snapshot.decode[0], snapshot.prefill[0]


def refusals(pool: Pool, now: float) -> dict[str, str]:
    return {refusal.worker: refusal.reason for refusal in pool.snapshot(now).refused}


def test_a_member_serves_from_its_first_report_until_it_falls_silent() -> None:
    pool = Pool()
    pool.join(member("d0"))
    assert refusals(pool, 10.0) == {"d0": "no report yet"}
    pool.report(D0, LIFE, LoadReport(), 10.0)
    assert pool.is_serving(11.0)
    assert refusals(pool, 11.4) == {"d0": "no report for 1.4 s"}
    assert not pool.is_serving(11.4)
    pool.report(D0, LIFE, LoadReport(), 11.5)
    assert pool.is_serving(11.5)


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (LoadReport(is_draining=True, is_serving=False), "draining"),
        (LoadReport(is_serving=False, step_age_s=3.0), "no progress: its step has run for 3.0 s"),
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
    pool.book(booking("r"))
    pool.first_token("r")
    assert refusals(pool, 10.7) == {}


def test_a_broken_stream_ends_service_at_once_and_the_next_report_restores_it() -> None:
    pool = live_pool()
    pool.unreachable(D0, LIFE)
    assert refusals(pool, 10.0) == {"d0": "unreachable"}
    pool.report(D0, LIFE, LoadReport(), 10.1)
    assert refusals(pool, 10.1) == {}


def test_a_placed_request_weighs_until_a_report_contains_it() -> None:
    pool = live_pool()
    pool.book(booking("r"))
    decode, prefill = views(pool)
    assert (decode.num_booked_sequences, decode.num_booked_context_tokens) == (1, 400)
    assert decode.num_free_tokens == 1200
    assert decode.num_booked_tokens == 0
    assert (prefill.num_booked_prompts, prefill.num_booked_tokens) == (1, 300)
    pool.report(P0, LIFE, LoadReport(num_waiting=1, request_ids=("r",)), 10.1)
    pool.report(D0, LIFE, LoadReport(num_waiting=1, request_ids=("other",)), 10.1)
    decode, prefill = views(pool)
    assert prefill.num_booked_prompts == 0
    assert decode.num_booked_sequences == 1
    pool.check()


def test_a_local_prefill_is_booked_on_the_decode_worker() -> None:
    pool = live_pool()
    pool.book(booking("r", prefill=None))
    decode, prefill = views(pool)
    assert (decode.num_booked_tokens, prefill.num_booked_tokens) == (300, 0)


def test_the_first_token_ends_the_prefill_and_the_end_ends_everything() -> None:
    pool = live_pool()
    pool.book(booking("r"))
    pool.first_token("r")
    decode, prefill = views(pool)
    assert prefill.num_booked_prompts == 0
    assert decode.num_booked_sequences == 1
    assert pool.num_in_flight == 1
    pool.release("r")
    pool.release("r")
    decode, _ = views(pool)
    assert decode.num_booked_sequences == 0
    assert pool.num_in_flight == 0
    pool.check()


def test_a_new_life_starts_without_a_past() -> None:
    pool = live_pool()
    pool.fail(D0, 10.0)
    pool.book(booking("r"))
    pool.join(member("d0", life="2"))
    pool.report(D0, LIFE, LoadReport(), 10.1)  # a late report of the earlier life
    assert refusals(pool, 10.1) == {"d0": "no report yet"}
    pool.report(D0, Incarnation("2"), LoadReport(), 10.1)
    decode, _ = views(pool)
    assert decode.num_booked_sequences == 0
    pool.release("r")
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
