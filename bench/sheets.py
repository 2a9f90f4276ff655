"""Tables of figures: for a terminal and for a Markdown document."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Cells are text already; the first `num_names` columns name a row."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    num_names: int = 1

    def as_rich(self) -> Table:
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for number, column in enumerate(self.columns):
            is_name = number < self.num_names
            table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name)
        for row in self.rows:
            table.add_row(*row)
        return table

    def as_markdown(self) -> str:
        marks = ["---" if n < self.num_names else "---:" for n in range(len(self.columns))]
        lines = [self.columns, tuple(marks), *self.rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"**{self.title}**\n\n{table}\n"


def number(value: float | None, digits: int = 2) -> str:
    """Empty where there is none; thousands have their commas."""
    return "" if value is None else f"{value:,.{digits}f}"


def verdict(is_met: bool | None) -> str:
    return {None: "", True: "met", False: "missed"}[is_met]
