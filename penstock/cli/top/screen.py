"""The screen of `penstock top`, and the one door to textual: keys, tables and pages; what they show
is drawn by `pages.py`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from rich.console import RenderableType
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static
from textual.widgets.data_table import ColumnKey

from penstock.cli.top import pages
from penstock.cli.top.asking import Asking
from penstock.cli.top.columns import BY_KEY, COLUMNS, ROLES, arranged
from penstock.cli.top.inside import Inside, LateRequest
from penstock.cli.top.watch import Watch
from penstock.cli.top.workers import link_figures, pair_figures

_ASK_S: Final = 2.0  # between two questions to the router of one page
_SOON_S: Final = 0.25  # until there is something to show
KEYS: Final = (
    ("↑ ↓ Home End", "choose a row; PgUp and PgDn turn pages"),
    ("← →", "the first or the last columns, where the terminal is too narrow for all"),
    ("Enter", "drill into it; Esc goes back"),
    ("< >", "sort by the column left or right; a click on its title does, too"),
    ("r", "reverse the order"),
    ("f", "show prefill workers, decode workers, all"),
    ("w", "what to look at: all that is worse than its like"),
    ("t", "the traffic of the last minutes"),
    ("l", "the late requests: where their time went, and why they went there"),
    ("c", "what the last change of policy did, its canary and its history"),
    ("p", "pause: figures stay as they are, and are read on"),
    ("q", "quit"),
)
CSS: Final = """
Screen { background: $background; }
#head { height: 6; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
#title { height: 1; padding: 0 1; text-style: bold; }
DataTable { height: 1fr; background: $background; scrollbar-size-horizontal: 0; }
VerticalScroll { padding: 0 1; }
"""


def show(watch: Watch, inside: Inside | None, *, sort: str, role: str) -> None:
    """Runs until the reader quits."""
    Top(watch, inside, sort=sort, role=role).run()


@dataclass(slots=True)
class Beat:
    """Tells all pages when to draw."""

    every_s: float
    is_paused: bool = False


class RowTable(DataTable[Text]):
    """A table whose rows keep their keys: only cells that changed are drawn anew."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("home", "scroll_top", show=False),
        Binding("end", "scroll_bottom", show=False),
        Binding("left", "show_columns(False)", show=False),
        Binding("right", "show_columns(True)", show=False),
    ]

    def __init__(self, columns: Sequence[tuple[str, str, int, bool]]) -> None:
        """`columns`: key, title, width, and whether its cells are numbers."""
        super().__init__(cursor_type="row", cell_padding=0, zebra_stripes=False, fixed_columns=1)
        self._columns = columns
        self._shown: dict[str, list[Text]] = {}

    def on_mount(self) -> None:
        for key, title, width, is_number in self._columns:
            self.add_column(_title(title, is_number), key=key, width=width)

    def show_rows(self, rows: Sequence[tuple[str, list[Text]]]) -> None:
        """The cursor stays on its row, wherever that stands now."""
        if [key for key, _ in rows] == list(self._shown):
            for key, texts in rows:
                self._change(key, texts)
        else:
            at, chosen = self.scroll_offset, self.chosen
            self.clear()
            for key, texts in rows:
                self.add_row(*texts, key=key)
            if chosen is not None and any(key == chosen for key, _ in rows):
                self.move_cursor(row=self.get_row_index(chosen), animate=False, scroll=False)
            self.scroll_to(at.x, at.y, animate=False)
        self._shown = dict(rows)

    def show_order(self, by: str, *, is_descending: bool) -> None:
        """Marks the title of the column that rows are sorted by."""
        for key, title, _, is_number in self._columns:
            mark = ("▼" if is_descending else "▲") if key == by else ""
            self.columns[ColumnKey(key)].label = _title(title + mark, is_number)
        self.refresh()

    def action_show_columns(self, last: bool) -> None:
        """What does not fit is one key away; whose row it is stands before all."""
        self.scroll_to(x=self.max_scroll_x if last else 0, animate=False)

    @property
    def chosen(self) -> str | None:
        """The key of the row that the cursor is on; None: there is none."""
        keys = list(self._shown)
        return keys[self.cursor_row] if 0 <= self.cursor_row < len(keys) else None

    def _change(self, key: str, texts: list[Text]) -> None:
        for (column, *_), old, new in zip(self._columns, self._shown[key], texts, strict=True):
            if old != new or old.style != new.style:
                self.update_cell(key, column, new)


def _title(text: str, is_number: bool) -> Text:
    return Text(text, justify="right" if is_number else "left")


class TextPage(Screen[None]):
    """Shows what `draw` gives, again and again; Esc goes back."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "back")]

    def __init__(
        self, draw: Callable[[], RenderableType], beat: Beat, asked: Asking[Any] | None = None
    ) -> None:
        super().__init__()
        self._draw = draw
        self._beat = beat
        self._asked = asked

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(id="page")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#page", Static).update(self._draw())
        self.set_interval(self._beat.every_s, self._paint)
        if self._asked is not None:
            self.run_worker(self._asked.run())

    def _paint(self) -> None:
        if not self._beat.is_paused:
            self.query_one("#page", Static).update(self._draw())


class Help(TextPage):
    """What the keys and columns are."""


class LatePage(Screen[None]):
    """The late requests; Enter asks why one went where it went."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "back")]

    def __init__(self, inside: Inside | None, beat: Beat) -> None:
        super().__init__()
        self._inside = inside
        self._beat = beat
        self._asked = Asking(inside.late if inside else None, pages.NO_TOKEN, every_s=_ASK_S)
        self._late: dict[str, LateRequest] = {}

    def compose(self) -> ComposeResult:
        yield Static(id="title")
        yield RowTable(
            [(name, name, width, is_number) for name, width, is_number in pages.LATE_COLUMNS]
        )
        yield Footer()

    def on_mount(self) -> None:
        self.run_worker(self._asked.run())
        self._paint()
        self.set_interval(self._beat.every_s, self._paint)
        self.set_timer(_SOON_S, self._paint)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        event.stop()
        late, inside = self._late.get(event.row_key.value or ""), self._inside
        if late is None or inside is None:
            return
        why = Asking(lambda: inside.explained(late.request_id))
        self.app.push_screen(
            TextPage(lambda: pages.late_page(late, why.said, why.missing), self._beat, why)
        )

    def _paint(self) -> None:
        if self._beat.is_paused and self._late:
            return
        self._late = {each.request_id: each for each in self._asked.said or ()}
        self.query_one("#title", Static).update(
            self._asked.missing or pages.late_title(list(self._late.values()))
        )
        rows = [(name, pages.late_cells(each)) for name, each in self._late.items()]
        self.query_one(RowTable).show_rows(rows)


class Workers(Screen[None]):
    """The table of workers, below what routers tell."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("less_than_sign", "sort(-1)", show=False),
        Binding("greater_than_sign", "sort(1)", "sort", key_display="< >"),
        Binding("r", "reverse", show=False),
        Binding("f", "filter", "role"),
        Binding("w", "concerns", "worst"),
        Binding("t", "traffic", "traffic"),
        Binding("l", "late", "late"),
        Binding("c", "changes", "policy"),
    ]

    def __init__(
        self, watch: Watch, inside: Inside | None, beat: Beat, *, sort: str, role: str
    ) -> None:
        super().__init__()
        self._watch = watch
        self._inside = inside
        self._beat = beat
        self._by, self._role = sort, role
        self._is_descending = BY_KEY[sort].is_number
        self._view, self._at = watch.view(), ""

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield RowTable([(each.key, each.title, each.width + 1, each.is_number) for each in COLUMNS])
        yield Footer()

    def on_mount(self) -> None:
        self.look()
        self.set_interval(self._beat.every_s, self.look)
        self.set_timer(_SOON_S, self.look)

    def look(self) -> None:
        """Takes what is new, but while the reader has paused."""
        if not (self._beat.is_paused and self._at):
            self._view, self._at = self._watch.view(), time.strftime("%H:%M:%S")
        self._paint()

    def _paint(self) -> None:
        notes = ["PAUSED"] if self._beat.is_paused else []
        notes += [f"only {self._role}"] if self._role else []
        window_s = self._watch.pace.window_s
        head = pages.head(self._view, window_s=window_s, at=self._at, note=" ".join(notes))
        self.query_one("#head", Static).update(head)
        shown = arranged(
            self._view.workers, by=self._by, is_descending=self._is_descending, role=self._role
        )
        marks = {(each.worker, each.column) for each in self._view.concerns}
        rows = self.query_one(RowTable)
        rows.show_rows([(each.name, pages.worker_cells(each, marks)) for each in shown])
        rows.show_order(self._by, is_descending=self._is_descending)

    def action_sort(self, step: int) -> None:
        keys = list(BY_KEY)
        self._sort_by(keys[(keys.index(self._by) + step) % len(keys)])

    def action_reverse(self) -> None:
        self._is_descending = not self._is_descending
        self._paint()

    def action_filter(self) -> None:
        self._role = ROLES[(ROLES.index(self._role) + 1) % len(ROLES)]
        self._paint()

    def action_concerns(self) -> None:
        self._open(lambda: pages.concerns_page(self._view))

    def action_traffic(self) -> None:
        self._open(lambda: pages.traffic_page(self._view, self._watch.traffic))

    def action_late(self) -> None:
        self.app.push_screen(LatePage(self._inside, self._beat))

    def action_changes(self) -> None:
        ask = self._inside.changes if self._inside else None
        asked = Asking(ask, pages.NO_TOKEN, every_s=_ASK_S)
        self._open(lambda: pages.policy_page(self._view, asked.said, asked.missing), asked)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        name = event.row_key.value or ""
        self._open(lambda: self._worker_page(name))

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        key = event.column_key.value or ""
        if key == self._by:
            self.action_reverse()
        else:
            self._sort_by(key)

    def _sort_by(self, key: str) -> None:
        self._by, self._is_descending = key, BY_KEY[key].is_number
        self._paint()

    def _open(self, draw: Callable[[], RenderableType], asked: Asking[Any] | None = None) -> None:
        self.app.push_screen(TextPage(draw, self._beat, asked))

    def _worker_page(self, name: str) -> RenderableType:
        watched = self._watch.workers.get(name)
        figures = next((each for each in self._view.workers if each.name == name), None)
        if watched is None or figures is None:
            return Text(f"{name} has left")
        pairs = pair_figures(watched.track, self._watch.pace.window_s)
        return pages.worker_page(
            figures, watched.history, pairs, link_figures(watched.track), str(watched.url.endpoint)
        )


class Top(App[None]):
    """Keys that are the same everywhere, and what goes on meanwhile: the watch."""

    CSS = CSS
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pause", "pause"),
        Binding("question_mark", "help", "help"),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]

    def __init__(self, watch: Watch, inside: Inside | None, *, sort: str, role: str) -> None:
        super().__init__()
        self._watch = watch
        self._beat = Beat(watch.pace.interval_s)
        self._first = Workers(watch, inside, self._beat, sort=sort, role=role)

    def get_default_screen(self) -> Screen[None]:
        return self._first

    def on_mount(self) -> None:
        self.run_worker(self._watch.run())

    def action_pause(self) -> None:
        self._beat.is_paused = not self._beat.is_paused
        self._first.look()

    def action_help(self) -> None:
        if not isinstance(self.screen, Help):
            self.push_screen(Help(lambda: pages.help_page(KEYS), self._beat))
