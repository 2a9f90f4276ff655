"""Figures of simulations. The one door to matplotlib, which is optional."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from simulator.faults import Fault
from simulator.report import Samples

_MAX_POINTS = 4_000  # a line; more cannot be told apart


def plot(path: Path, runs: Mapping[str, Samples], faults: Sequence[Fault] = ()) -> None:
    """Writes a PNG: how TTFT and the gaps between tokens are spread, and TTFT over time, a line
    for each run; faults are shaded.

    Raises ConfigError where matplotlib is missing or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "Figures need matplotlib: pip install 'penstock[plot]', or leave out '--plot'."
        ) from error
    figure = Figure(figsize=(9, 8), layout="constrained")
    panels: Any = figure.subplot_mosaic([["ttft", "gaps"], ["course", "course"]])
    course = panels["course"]
    for name, samples in runs.items():
        _draw_longer(panels["ttft"], name, [(ttft_s, 1) for ttft_s in sorted(samples.ttft_s)])
        _draw_longer(panels["gaps"], name, samples.gap_counts)
        course.plot(*_thinned(samples.arrival_s, samples.ttft_s), ".", ms=2, label=name)
    for fault in faults:
        course.axvspan(fault.at_s, min(fault.at_s + fault.for_s, course.get_xlim()[1]), alpha=0.15)
    _label(panels["ttft"], "TTFT, s", "share of requests that waited longer")
    _label(panels["gaps"], "gap between tokens, s", "share of gaps that were longer")
    _label(course, "arrival, s", "TTFT, s")
    panels["ttft"].legend(loc="lower left")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written: {error.strerror}.") from error


def _draw_longer(axes: Any, name: str, counts: Sequence[tuple[float, int]]) -> None:
    """`counts`: (value, how often), rising. Logarithmic: what matters is the tail."""
    total = sum(count for _, count in counts)
    longer = [1 - seen / total for seen in accumulate(count for _, count in counts)]
    axes.loglog(*_thinned([value for value, _ in counts[:-1]], longer[:-1]), label=name)


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    stride = max(1, len(x) // _MAX_POINTS)
    return x[::stride], y[::stride]


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
