"""Writes figures for people: `-` where nothing happened. Pure."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

NOTHING: Final = "-"
_BARS: Final = "▁▂▃▄▅▆▇█"


def duration(seconds: float | None) -> str:
    """Three digits and a unit."""
    if seconds is None:
        return NOTHING
    if seconds < 0.9995e-3:
        return f"{1e6 * seconds:.0f} µs" if seconds else "0 s"
    if seconds < 0.9995:
        return f"{_digits(1e3 * seconds)} ms"
    if seconds < 120:
        return f"{_digits(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def share_text(share: float | None) -> str:
    if share is None:
        return NOTHING
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def number(value: float | None) -> str:
    """As many digits as matter, thousands as k, M, G."""
    if value is None:
        return NOTHING
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{_digits(value / (1e3 if unit == 'k' else limit))}{unit}"
    return _digits(value) if value != int(value) else f"{value:.0f}"


def count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f}"


def gigabytes(value: float | None) -> str:
    """GB a second."""
    if value is None:
        return NOTHING
    return f"{value:.3f}" if value < 0.1 else _digits(value)


def bytes_text(value: float | None) -> str:
    if value is None:
        return NOTHING
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{_digits(value / limit)} {unit}"
    return f"{value:.0f} B"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Bars from 0 to the maximum; a gap where there was none. What does not fit is averaged."""
    shown = list(values)
    if len(shown) > width:
        ends = [len(shown) * at // width for at in range(width + 1)]
        shown = [_mean(shown[low:high]) for low, high in pairwise(ends)]
    most = max((each for each in shown if each is not None), default=0.0)
    bars = [" " if each is None else _bar(each, most) for each in shown]
    return "".join(bars).rjust(width)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return sum(known) / len(known) if known else None


def _bar(value: float, most: float) -> str:
    return _BARS[0] if most <= 0 else _BARS[min(7, int(8 * max(0.0, value) / most))]


def _digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
