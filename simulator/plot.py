"""Figures of simulations. The one door to matplotlib, which is optional."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from simulator.faults import Fault
from simulator.report import Samples

_KINDS = {".png", ".svg", ".pdf"}
_MAX_POINTS = 4_000  # a line; more cannot be told apart


def figure_file(path: Path) -> Path:
    """Where a figure goes that is to be at `path`: with `.png`, where no kind is named. Raises
    ConfigError where none can be made there, before anything is simulated."""
    if find_spec("matplotlib") is None:
        raise ConfigError("Figures need matplotlib: pip install matplotlib, or leave out '--plot'.")
    file = path if path.suffix.lower() in _KINDS else path.with_name(f"{path.name}.png")
    if not path.name or file.is_dir() or not file.absolute().parent.is_dir():
        raise ConfigError(f"'{file}' cannot be written: give a file in a directory that exists.")
    return file


def plot(file: Path, runs: Mapping[str, Samples], faults: Sequence[Fault] = ()) -> None:
    """Writes a `figure_file`: how TTFT and the gaps between tokens are spread, and TTFT over time,
    a line for each run; faults are shaded. Raises ConfigError where it cannot be written."""
    from matplotlib.figure import Figure

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
        figure.savefig(file, format=file.suffix[1:].lower(), dpi=120)
    except OSError as error:
        raise ConfigError(f"'{file}' cannot be written: {error.strerror}.") from error


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
