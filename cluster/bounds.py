"""Checks whether a setting is within what makes sense. Each check raises ValueError with a
sentence, to which whoever reads the setting adds its place.
"""

import math
import re
from collections.abc import Iterable
from typing import Final

NAME_PATTERN: Final = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


def check_name(name: str, what: str) -> None:
    """Names are labels of metrics."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(
            f"'{name[:80]}' is no name of a {what}: give lower-case letters, digits and '-', at"
            " most 63."
        )


def check_choice(name: str, what: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ValueError(f"'{name[:80]}' is no {what}: choose from {', '.join(known)}.")


def check_between(what: str, value: float, unit: str = "", *, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(_refusal(what, value, unit, f"from {least:,.10g} to {most:,.10g}"))


def check_above(what: str, value: float, unit: str = "", *, least: float, most: float) -> None:
    if not (math.isfinite(value) and least < value <= most):
        raise ValueError(_refusal(what, value, unit, f"above {least:,.10g}, at most {most:,.10g}"))


def _refusal(what: str, value: float, unit: str, range_: str) -> str:
    unit = f" {unit}" if unit else ""
    return f"{what} is {value:,.10g}{unit}: give one {range_}{unit}."
