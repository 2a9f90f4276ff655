"""Figures as people read them, and that there are such metrics."""

import re
from pathlib import Path

import pytest

import penstock.cli.top
from cluster.metrics.process import PROCESS
from penstock.cli.top.texts import bytes_text, duration, gigabytes, number, share_text, sparkline
from router.metrics.table import ROUTER
from tests.penstock.top.told import names
from worker.metrics import WORKER


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0, "0 s"), (4e-5, "40 µs"), (0.0009996, "1.00 ms"), (0.00123, "1.23 ms"),
        (0.0212, "21.2 ms"), (0.9994, "999 ms"), (0.9996, "1.00 s"), (12.34, "12.3 s"),
        (119, "119 s"), (600, "10 min"), (1e5, "28 h"),
    ],
)  # fmt: skip
def test_seconds_have_three_digits_and_a_unit(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_other_figures() -> None:
    assert [share_text(each) for each in (None, 0, 0.005, 0.12, 1)] == [
        "-", "0 %", "0.5 %", "12 %", "100 %",
    ]  # fmt: skip
    assert [number(each) for each in (None, 0, 3.456, 120, 23_456, 4.2e6, 7e9)] == [
        "-", "0", "3.46", "120", "23.5k", "4.20M", "7.00G",
    ]  # fmt: skip
    assert [bytes_text(each) for each in (None, 12, 3.5e3, 4e6, 5e9)] == [
        "-", "12 B", "3.50 kB", "4.00 MB", "5.00 GB",
    ]  # fmt: skip
    assert [gigabytes(each) for each in (None, 0.012, 1.5, 22)] == ["-", "0.012", "1.50", "22.0"]


def test_a_sparkline_goes_from_nothing_to_its_maximum_with_gaps() -> None:
    assert sparkline([0, 4, None, 8], 6) == "  ▁▅ █"
    assert sparkline([], 3) == "   "
    assert sparkline([0.0, 0.0], 2) == "▁▁"
    assert sparkline([*[1.0] * 50, *[8.0] * 50], 4) == "▂▂██"


def test_every_metric_that_is_read_is_one_that_somebody_tells() -> None:
    folder = Path(penstock.cli.top.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    read = {
        re.sub(r"_seconds_(bucket|count|sum)$", "_seconds", name)
        for name in re.findall(r'"(penstock_[a-z_]+)"', text)
    }
    assert len(read) > 20
    assert read - names([*ROUTER, *WORKER, *PROCESS]) == set()
