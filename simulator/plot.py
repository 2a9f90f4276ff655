"""Figures of simulations. The one door to matplotlib, which is optional."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from math import ceil, floor, isfinite, log10
from pathlib import Path
from statistics import median
from typing import Any

from cluster.errors import ConfigError
from simulator.faults import TimedFault
from simulator.report import Samples
from simulator.setting import Targets

_KINDS = {".png", ".svg", ".pdf"}
_MAX_POINTS = 4_000  # a line; more cannot be told apart
_NUM_SPANS = 60  # of time, a median each
_LEAST_S = 1e-5  # gaps are counted in such steps; a logarithm has no 0
_STYLES = ("-", "--", "-.", ":")
_LEVELS = (0.97, 0.66, 0.35)  # of the names of faults, so that neighbours do not overprint


def figure_file(path: Path) -> Path:
    """Says where a figure goes that is to be at `path`: with `.png`, where no kind is named. Raises
    ConfigError where none can be made there, before anything is simulated."""
    if find_spec("matplotlib") is None:
        raise ConfigError("Figures need matplotlib: pip install matplotlib, or leave out '--plot'.")
    file = path if path.suffix.lower() in _KINDS else path.with_name(f"{path.name}.png")
    if not path.name or file.is_dir() or not file.absolute().parent.is_dir():
        raise ConfigError(f"'{file}' cannot be written: give a file in a directory that exists.")
    return file


def plot(
    file: Path,
    runs: Mapping[str, Samples],
    faults: Sequence[TimedFault] = (),
    *,
    title: str,
    targets: Targets,
) -> None:
    """Writes a `figure_file`: how TTFT and the gaps between tokens are spread, and TTFT over time,
    a line for each run, beside the targets; faults are shaded and named. Raises ConfigError where
    it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    figure.suptitle(title)
    panels: Any = figure.subplot_mosaic([["ttft", "gaps"], ["course", "course"]])
    ttft_counts = {name: _counts(samples.ttft_s) for name, samples in runs.items()}
    gap_counts = {name: samples.gap_counts for name, samples in runs.items()}
    _draw_spread(panels["ttft"], ttft_counts, targets.ttft_s)
    _draw_spread(panels["gaps"], gap_counts, targets.itl_s)
    panels["ttft"].set_xlabel("TTFT, s")
    panels["gaps"].set_xlabel("gap between tokens, s")
    _draw_course(panels["course"], runs, targets.ttft_s)
    _draw_faults(panels["course"], faults)
    lines = panels["ttft"].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=min(3, len(lines[0])))
    try:
        figure.savefig(file, format=file.suffix[1:].lower(), dpi=120)
    except OSError as error:
        raise ConfigError(f"'{file}' cannot be written: {error.strerror}.") from error


def _draw_spread(
    axes: Any, runs: Mapping[str, Sequence[tuple[float, int]]], target_s: float
) -> None:
    """`runs`: (value, how often), rising. Logarithmic: what matters is the tail."""
    most = max((sum(count for _, count in counts) for counts in runs.values()), default=1)
    for style, (name, counts) in zip(_styles(), runs.items(), strict=False):
        points = _thinned(list(_longer(counts)))
        axes.plot(*_columns(points), style, drawstyle="steps-pre", label=name)
    axes.axvline(target_s, color="0.5", lw=1, label="target")
    ends = [value for counts in runs.values() for value, _ in (*counts[:1], *counts[-1:])]
    _scale(axes, "x", _seconds([*ends, target_s]))
    _scale(axes, "y", [1.0 / max(1, most)], highest=0)
    axes.set_ylabel("share that took so long or longer")
    axes.grid(alpha=0.3)


def _draw_course(axes: Any, runs: Mapping[str, Samples], target_s: float) -> None:
    """A dot for each request; a line of medians, for dots of several runs hide each other."""
    times = [arrival_s for samples in runs.values() for arrival_s in samples.arrival_s]
    end_s = max(times, default=0.0) or 1.0
    for style, samples in zip(_styles(), runs.values(), strict=False):
        points = sorted(zip(samples.arrival_s, samples.ttft_s, strict=True))
        [line] = axes.plot(*_columns(_medians(points, end_s / _NUM_SPANS)), style)
        thinned = points[:: max(1, len(points) // _MAX_POINTS)]
        axes.plot(*_columns(thinned), ".", ms=2, alpha=0.3, color=line.get_color())
    axes.axhline(target_s, color="0.5", lw=1)
    axes.set_xlim(0.0, end_s)
    values = [ttft_s for samples in runs.values() for ttft_s in samples.ttft_s]
    _scale(axes, "y", _seconds([*values, target_s]))
    axes.set_xlabel("arrival, s")
    axes.set_ylabel("TTFT, s: each, and median")
    axes.grid(alpha=0.3)


def _draw_faults(axes: Any, faults: Sequence[TimedFault]) -> None:
    end_s = axes.get_xlim()[1]
    seen = [fault for fault in sorted(faults, key=lambda f: f.at_s) if fault.at_s < end_s]
    for number, fault in enumerate(seen):
        axes.axvspan(fault.at_s, min(fault.at_s + fault.for_s, end_s), alpha=0.12, color="tab:red")
        axes.text(
            fault.at_s,
            _LEVELS[number % len(_LEVELS)],
            f" {_kind(fault)}, {fault.worker}",
            transform=axes.get_xaxis_transform(),
            rotation="vertical",
            va="top",
            fontsize=7,
        )


def _kind(fault: TimedFault) -> str:
    """`LostEvents`: lost events."""
    return re.sub(r"(?<=.)(?=[A-Z])", " ", type(fault).__name__).lower()


def _scale(axes: Any, axis: str, values: Sequence[float], highest: int | None = None) -> None:
    """Logarithmic over whole decades, each with its number, up to 10 ** highest: between less than
    two of them matplotlib labels parts of decades, which overprint."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    low = ceil(log10(min(values))) - 1
    high = floor(log10(max(values))) + 1 if highest is None else highest
    getattr(axes, f"set_{axis}lim")(10.0**low, 10.0**high)
    getattr(axes, f"set_{axis}scale")("log")
    ticks = getattr(axes, f"{axis}axis")
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_formatter(NullFormatter())


def _seconds(values: Sequence[float]) -> list[float]:
    """Gives what a logarithmic axis can show of them."""
    return [max(value, _LEAST_S) for value in values if isfinite(value)] or [1.0]


def _styles() -> Iterator[str]:
    """Told apart without colours, too."""
    while True:
        yield from _STYLES


def _counts(values: Sequence[float]) -> list[tuple[float, int]]:
    return [(value, 1) for value in sorted(values)]


def _longer(counts: Sequence[tuple[float, int]]) -> Iterator[tuple[float, float]]:
    """(value, share that is as much or more), from all down to none."""
    left = total = sum(count for _, count in counts)
    for value, count in counts:
        yield max(value, _LEAST_S), left / total
        left -= count
    if counts:
        yield max(counts[-1][0], _LEAST_S), 1e-300


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Keeps the end, which is the tail."""
    num_end = _MAX_POINTS // 2
    head, end = points[:-num_end], points[-num_end:]
    return [*head[:: max(1, len(head) // num_end)], *end]


def _medians(points: Sequence[tuple[float, float]], span_s: float) -> Sequence[tuple[float, float]]:
    """Gives the median of (when, value), for each span of time that has any."""
    spans: dict[int, list[float]] = {}
    for at_s, value in points:
        spans.setdefault(int(at_s / span_s), []).append(value)
    return [((span + 0.5) * span_s, median(values)) for span, values in spans.items()]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
