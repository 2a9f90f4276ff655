"""Figures of the KV transfer benchmark: rows against their targets, a JSON value, sheets."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.kv_cases import Case
from bench.kv_contest import Outcome
from bench.kv_ways import WaySamples
from bench.sheets import Sheet, number, verdict
from penstock.load.report import percentile

# The least share of its yardstick's speed that a transport may have, without the digest and
# with it.
LEAST_RATIO = {"shared_memory": 0.9, "tcp": 0.9, "nixl": 0.95}
LEAST_DIGESTED_RATIO = {"shared_memory": 0.8, "tcp": 0.8}
BIG_BYTES = 32 * 2**20  # from here on speed counts, below it what is added
MOST_ADDED_US = 200.0
SPEED_COLUMNS = (
    *("spans", "way", "GB/s", "p10 µs", "median µs", "p90 µs", "CPU s/GB"),
    *("x memcpy", "x yardstick", "at p10", "added µs", "target", ""),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WayRow:
    """One way in one case; ratio and added time are against the contest's fastest yardstick."""

    door: str  # of the contest
    case: str
    way: str
    gigabytes_per_s: float
    p10_us: float
    median_us: float
    p90_us: float
    cpu_s_per_gigabyte: float  # both processes
    of_memcpy: float
    of_yardstick: float | None = None  # of the medians
    of_yardstick_at_p10: float | None = None  # of the moves that were least disturbed
    added_us: float | None = None
    target: str = ""
    is_met: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestRow:
    """What the digest costs a transport: its writer, and its receiver's check."""

    door: str
    case: str
    writer_percent: float  # more time a move
    verify_ms: float
    verify_gigabytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUpRow:
    """`first_touch`: the first pass over all of the pool, against the median of later moves."""

    door: str
    way: str
    connect_ms: float | None
    first_touch_gigabytes_per_s: float


def rows(outcome: Outcome) -> Iterator[WayRow]:
    for case, samples in outcome.samples.items():
        best = min((samples[name] for name in outcome.yardsticks), key=lambda one: one.median_s)
        for name, mine in samples.items():
            row = _row(outcome.door, case, name, mine, samples["memcpy"])
            if name == "memcpy" or name in outcome.yardsticks:
                yield WayRow(**row)
            else:
                yield WayRow(**row, **_held_against(best, mine, outcome.door, case, name))


def _row(door: str, case: Case, name: str, mine: WaySamples, memcpy: WaySamples) -> dict[str, Any]:
    return {
        "door": door,
        "case": str(case),
        "way": name,
        "gigabytes_per_s": mine.gigabytes_per_s,
        "p10_us": 1e6 * percentile(mine.seconds, 10),
        "median_us": 1e6 * mine.median_s,
        "p90_us": 1e6 * percentile(mine.seconds, 90),
        "cpu_s_per_gigabyte": mine.cpu_s_per_gigabyte,
        "of_memcpy": memcpy.median_s / mine.median_s,
    }


def _held_against(
    best: WaySamples, mine: WaySamples, door: str, case: Case, name: str
) -> dict[str, Any]:
    ratio, added_us = best.median_s / mine.median_s, 1e6 * (mine.median_s - best.median_s)
    at_p10 = percentile(best.seconds, 10) / percentile(mine.seconds, 10)
    held = {"of_yardstick": ratio, "of_yardstick_at_p10": at_p10, "added_us": added_us}
    if case.num_bytes < BIG_BYTES:
        if name != door:  # with the digest: no target
            return held
        return {**held, "target": f"+{MOST_ADDED_US:g} µs", "is_met": added_us <= MOST_ADDED_US}
    least = (LEAST_RATIO if name == door else LEAST_DIGESTED_RATIO).get(door)
    if least is None:
        return held
    return {**held, "target": f"{least:g} x", "is_met": ratio >= least}


def digest_rows(outcome: Outcome) -> Iterator[DigestRow]:
    for case, samples in outcome.samples.items():
        plain, digested = samples[outcome.door], samples[f"{outcome.door} + digest"]
        yield DigestRow(
            door=outcome.door,
            case=str(case),
            writer_percent=100 * (digested.median_s / plain.median_s - 1),
            verify_ms=1e3 * outcome.verify_s[case],
            verify_gigabytes_per_s=case.num_bytes / outcome.verify_s[case] / 1e9,
        )


def set_up_rows(outcome: Outcome) -> Iterator[SetUpRow]:
    for way, bytes_per_s in outcome.first_touch.items():
        yield SetUpRow(
            door=outcome.door,
            way=way,
            connect_ms=1e3 * outcome.connect_s if way == outcome.door else None,
            first_touch_gigabytes_per_s=bytes_per_s / 1e9,
        )


def as_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "transports": [asdict(row) for outcome in outcomes for row in rows(outcome)],
        "digest": [asdict(row) for outcome in outcomes for row in digest_rows(outcome)],
        "set_up": [asdict(row) for outcome in outcomes for row in set_up_rows(outcome)],
    }


def sheets(outcomes: Sequence[Outcome]) -> list[Sheet]:
    return [
        *(_speed_sheet(outcome) for outcome in outcomes),
        _digest_sheet([row for outcome in outcomes for row in digest_rows(outcome)]),
        _set_up_sheet([row for outcome in outcomes for row in set_up_rows(outcome)]),
    ]


def _speed_sheet(outcome: Outcome) -> Sheet:
    return Sheet(
        title=f"{outcome.door}, against {' and '.join(outcome.yardsticks)}",
        columns=SPEED_COLUMNS,
        rows=[_speed_cells(row) for row in rows(outcome)],
        num_names=2,
    )


def _speed_cells(row: WayRow) -> tuple[str, ...]:
    return (
        row.case,
        row.way,
        number(row.gigabytes_per_s),
        number(row.p10_us, 0),
        number(row.median_us, 0),
        number(row.p90_us, 0),
        number(row.cpu_s_per_gigabyte, 3),
        number(row.of_memcpy),
        number(row.of_yardstick),
        number(row.of_yardstick_at_p10),
        number(row.added_us, 0),
        row.target,
        verdict(row.is_met),
    )


def _digest_sheet(found: Sequence[DigestRow]) -> Sheet:
    return Sheet(
        title="What the digest costs",
        columns=("transport", "spans", "writer, % more time", "check, ms", "check, GB/s"),
        rows=[
            (
                row.door,
                row.case,
                number(row.writer_percent, 0),
                number(row.verify_ms),
                number(row.verify_gigabytes_per_s, 1),
            )
            for row in found
        ],
        num_names=2,
    )


def _set_up_sheet(found: Sequence[SetUpRow]) -> Sheet:
    return Sheet(
        title="Opening both ends, and the first pass over the pool",
        columns=("contest", "way", "open, ms", "first pass, GB/s"),
        rows=[
            (row.door, row.way, number(row.connect_ms, 1), number(row.first_touch_gigabytes_per_s))
            for row in found
        ],
        num_names=2,
    )
