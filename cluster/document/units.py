"""Numbers with units, as documents write them: `750ms`, `8GiB`, `10GB/s`, `5%`.

A field tells its unit by the end of its name, as everywhere in the code (`_s`, `_bytes`,
`_bytes_per_s`, and `_share` for a part of a whole); in a file the value tells it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

_SIZES: Final = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate(("k", "M", "G", "T"), start=1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate(("K", "M", "G", "T"), start=1)},
}
_NUMBER: Final = r"([0-9]{1,20}(?:\.[0-9]{1,40})?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Says how the values of one kind of quantity are written."""

    suffix: str  # of a field's name
    noun: str
    example: str
    scales: Mapping[str, Decimal]  # by symbol, what one of it is in the field's own unit

    @property
    def pattern(self) -> str:
        """A regular expression, of JSON Schema's dialect too."""
        return f"^{_NUMBER}({'|'.join(self.scales)})$"

    def parse(self, text: Any) -> float:
        """Raises ValueError, which says what to give."""
        found = re.fullmatch(self.pattern, text) if isinstance(text, str) else None
        if not found:
            raise ValueError(f"give {self.noun}, as {self.example}.")
        return float(Decimal(found[1]) * self.scales[found[2]])

    def show(self, value: float) -> str:
        """The shortest text that is parsed to `value` again, if possible without a point."""
        number = Decimal(repr(float(value)))
        texts = (f"{_plain(number / scale)}{symbol}" for symbol, scale in self.scales.items())
        exact_texts = [text for text in texts if self._means(text, value)]
        return min(exact_texts, key=lambda text: ("." in text, len(text)))

    def _means(self, text: str, value: float) -> bool:
        return bool(re.fullmatch(self.pattern, text)) and self.parse(text) == value


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"


def _scales(**of_one: float | str) -> dict[str, Decimal]:
    return {symbol: Decimal(scale) for symbol, scale in of_one.items()}


# A longer suffix stands before one that it ends with.
UNITS: Final = (
    Unit(
        suffix="_bytes_per_s",
        noun="bytes a second",
        example="10GB/s",
        scales={f"{symbol}/s": Decimal(scale) for symbol, scale in _SIZES.items()},
    ),
    Unit(suffix="_bytes", noun="a size", example="8GiB", scales=_scales(**_SIZES)),
    Unit(suffix="_share", noun="a part of a whole", example="5%", scales={"%": Decimal("0.01")}),
    Unit(
        suffix="_s",
        noun="a duration",
        example="750ms or 2s",
        scales=_scales(s=1, ms="0.001", us="0.000001", m=60, h=3600),
    ),
)


def unit_of(field: str) -> Unit | None:
    """The unit of a field of this name; None: a plain number, or no number."""
    return next((unit for unit in UNITS if field.endswith(unit.suffix)), None)
