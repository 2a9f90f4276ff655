"""Reads the text that Prometheus scrapes: our own series of a page, by name and labels. Pure.

A parser of its own, as a refresh reads a page of each worker: docs/decisions.md has the figures.
"""

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from cluster.metrics.metric import PREFIX

Samples = Mapping[str, Mapping[str, float]]  # values by name, then by labels as they are written
_LABEL: Final = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\.)*)"')
_ESCAPES: Final = {"n": "\n"}
_MAX_LABELS: Final = 1 << 17  # texts that are remembered
BUILD: Final = "penstock_build_info"


class NotMetrics(Exception):
    """A page is not what a process of ours tells."""


def samples(text: str) -> Samples:
    """Leaves out what is not ours, and values that are no finite numbers.

    Raises NotMetrics where a line cannot be read, or the page is of no process of ours.
    """
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        if not line.startswith(PREFIX):
            continue
        series, _, number = line.rpartition(" ")
        name, _, labels = series.partition("{")
        try:
            value = float(number)
        except ValueError:
            raise NotMetrics(f"it has a line that is no sample: '{line[:80]}'") from None
        if math.isfinite(value):
            found.setdefault(name, {})[labels] = value
    if BUILD not in found:
        raise NotMetrics("no process of Penstock tells that")
    return found


@lru_cache(_MAX_LABELS)
def labels_of(text: str) -> Mapping[str, str]:
    """Reads labels as they are written, so that they can be printed."""
    return {name: printable(_unescaped(value)) for name, value in _LABEL.findall(text)}


def label(samples_: Samples, name: str, wanted: str) -> str:
    """A label of the first series of this name; empty: there is none."""
    return next((labels_of(each).get(wanted, "") for each in samples_.get(name, ())), "")


def value(samples_: Samples, name: str, **wanted: str) -> float | None:
    """The sum over the series with these labels; None: there is none."""
    told = [
        number
        for text, number in samples_.get(name, {}).items()
        if wanted.items() <= labels_of(text).items()
    ]
    return sum(told) if told else None


def printable(text: str) -> str:
    """Shows what cannot be printed as a question mark: a terminal would do as it says."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), text)
