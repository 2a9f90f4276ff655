"""Figures say what was simulated, whatever was; their text is read from the SVG."""

import re
from collections.abc import Sequence
from math import inf
from pathlib import Path

import pytest

from cluster.types import WorkerId
from simulator.faults import Crash, LostEvents, TimedFault
from simulator.plot import figure_file, plot
from simulator.report import Samples
from simulator.setting import Targets

DECADES = {f"{10.0**exponent:g}" for exponent in range(-9, 9)}


def samples(ttft_s: Sequence[float], gaps: Sequence[tuple[float, int]] = ()) -> Samples:
    arrival_s = [10.0 * number for number in range(len(ttft_s))]
    return Samples(arrival_s=arrival_s, ttft_s=ttft_s, hit_tokens=[], gap_counts=gaps)


def drawn(
    folder: Path, *runs: Samples, targets: Targets, faults: Sequence[TimedFault] = ()
) -> list[str]:
    """All words of the figure."""
    file = figure_file(folder / "figure.svg")
    named = {f"run {number}": each for number, each in enumerate(runs)}
    plot(file, named, faults, title="a trace: 3 requests", targets=targets)
    return re.findall(r"<!-- (.*?) -->", file.read_text())


def test_a_figure_names_traffic_runs_target_and_faults(tmp_path: Path) -> None:
    faults = [
        LostEvents(worker=WorkerId("decode-1"), at_s=0.0, for_s=5.0),
        Crash(worker=WorkerId("decode-0"), at_s=5.0, for_s=inf),
        Crash(worker=WorkerId("decode-2"), at_s=500.0),
    ]
    run = samples([0.5, 0.9, 2.5], [(0.02, 40), (0.3, 1)])
    words = drawn(tmp_path, run, run, targets=Targets(), faults=faults)
    expected = {"a trace: 3 requests", "run 0", "run 1", "target", "crash, decode-0"}
    assert expected | {"lost events, decode-1"} <= set(map(str.strip, words))
    assert not any("decode-2" in word for word in words)  # it befell nobody in the figure


@pytest.mark.parametrize(
    ("run", "targets"),
    [
        (samples([1e-5, 0.5, 9e4], [(0.0, 40), (3e3, 2)]), Targets()),
        (samples([2.0, 2.0], [(0.1, 3)]), Targets(ttft_s=2.0, itl_s=0.1)),
        (samples([0.5]), Targets(ttft_s=0.0, itl_s=inf)),
        (samples([]), Targets()),
    ],
    ids=["nine decades", "one value, the target", "no gaps, odd targets", "nobody served"],
)
def test_logarithmic_axes_are_numbered_by_decades(
    run: Samples, targets: Targets, tmp_path: Path
) -> None:
    """Two at least on each, and nothing between them, which would overprint."""
    words = drawn(tmp_path, run, targets=targets)
    assert not any("mathdefault" in word for word in words)
    numbers = [word for word in words if re.fullmatch(r"[\d.e+-]+", word)]
    spread = numbers[: numbers.index("1")]  # of the first axis, up to one of these
    assert set(spread) <= DECADES
    assert len([word for word in numbers if word in DECADES]) >= 8
