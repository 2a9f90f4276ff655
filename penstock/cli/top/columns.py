"""The table of workers: its columns, in which order its rows stand, and which are shown. Pure."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from penstock.cli.top.texts import bytes_text, count, duration, gigabytes, number, share_text
from penstock.cli.top.workers import WorkerFigures

NAME_WIDTH: Final = 12


class WorkerColumn(NamedTuple):
    key: str
    title: str
    width: int
    read: Callable[[WorkerFigures], Any]  # what rows are sorted by; None comes last
    text: Callable[[Any], str]
    meaning: str
    is_number: bool = True


COLUMNS: Final = (
    WorkerColumn("worker", "worker", NAME_WIDTH, lambda w: w.name, str, "its name", False),
    WorkerColumn("role", "role", 7, lambda w: w.role, str, "what it does", False),
    WorkerColumn(
        "health", "health", 11, lambda w: w.health, str,
        "as it says; or since when it does not answer", False,
    ),
    WorkerColumn(
        "queue", "queue", 7, lambda w: w.queue_s, duration,
        "seconds of prompts that wait there, as predicted",
    ),
    WorkerColumn("running", "run", 4, lambda w: w.num_running, count, "requests that take a slot"),
    WorkerColumn("waiting", "wait", 4, lambda w: w.num_waiting, count, "requests that wait"),
    WorkerColumn("kv", "KV", 5, lambda w: w.kv_usage, share_text, "share of its KV pool in use"),
    WorkerColumn(
        "hit", "hit", 5, lambda w: w.hit_share, share_text,
        "share of its prompts' tokens whose KV was found there",
    ),
    WorkerColumn(
        "gb_per_s", "GB/s", 5, lambda w: w.gb_per_s, gigabytes,
        "KV sent and received, while it moved",
    ),
    WorkerColumn(
        "itl", "ITL", 7, lambda w: w.itl_s, duration,
        "median time between two tokens: a decode worker's steps",
    ),
    # What a narrow terminal scrolls to: no half of a figure is at an edge of 80 letters.
    WorkerColumn(
        "step_p99", "p99", 12, lambda w: w.step_p99_s, duration,
        "99 of 100 of its steps took less",
    ),
    WorkerColumn(
        "tokens", "tokens/s", 8, lambda w: w.tokens_per_s, number, "through its model",
    ),
    WorkerColumn(
        "moved", "moved/s", 8, lambda w: w.moved_bytes_per_s, bytes_text, "KV sent and received",
    ),
)  # fmt: skip
NARROW: Final = 10  # of them fit 80 letters
BY_KEY: Final = {each.key: each for each in COLUMNS}
ROLES: Final = ("", "prefill", "decode")  # empty: all


def arranged(
    workers: Sequence[WorkerFigures], *, by: str, is_descending: bool, role: str = ""
) -> list[WorkerFigures]:
    """RowTable of this role, or all; those without a figure last, equals by name."""
    column = BY_KEY[by]
    shown = sorted((w for w in workers if not role or w.role == role), key=lambda w: _rank(w.name))
    known = [w for w in shown if column.read(w) is not None]
    known.sort(key=lambda w: _rank(column.read(w)), reverse=is_descending)
    return [*known, *(w for w in shown if column.read(w) is None)]


def _rank(value: Any) -> Any:
    """Where it stands: of names the numbers in them count, decode-9 is before decode-10."""
    if not isinstance(value, str):
        return value
    parts = re.findall(r"[0-9]+|[^0-9]+", value)
    return [(each.isdecimal(), int(each) if each.isdecimal() else 0, each) for each in parts]


def cells(worker: WorkerFigures) -> list[str]:
    """Of whom nothing new is known the health says since when."""
    told = [column.text(column.read(worker)) for column in COLUMNS]
    if worker.since_s is not None:
        told[_HEALTH] = f"{_SHORT.get(told[_HEALTH], told[_HEALTH])} {duration(worker.since_s)}"
    return told


_HEALTH: Final = [each.key for each in COLUMNS].index("health")
_SHORT: Final = {"no answer": "lost"}
