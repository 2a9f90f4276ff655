"""The screen, as a reader uses it: keys, and what is seen."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from rich.console import Console
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from penstock.cli.top.inside import Changes, Explained, ExplainedChoice, Inside, LateRequest
from penstock.cli.top.screen import RowTable, Top
from penstock.cli.top.watch import Pace, Watch
from tests.penstock.top.served import ServedCluster, served
from tests.penstock.top.told import series

pytestmark = pytest.mark.slow
NARROW = (80, 24)
LATE = LateRequest(
    request_id="0123456789abcdef",
    age_s=12.0,
    state="finished",
    lateness=2.5,
    ttft_s=5.0,
    itl_s=0.02,
    total_s=7.0,
    phases={"router": 0.1, "queue": 4.2, "prefill": 0.5, "transfer": 0.3, "decode": 2.0},
    target_ttft_s=2.0,
    target_itl_s=0.2,
    prompt_tokens=900,
    cached_tokens=64,
    tokens=100,
    prefill="prefill-0",
    decode="decode-1",
    generation=1,
    moved=0,
)
CHOICE = ExplainedChoice(
    rule="priced",
    sentence="'decode-1' costs the least.",
    predicted_ttft_s=0.4,
    candidates=[("prefill-0 → decode-1", 0.5, [("wait", 0.3), ("prefill", 0.2)])],
    left_out=[("decode-0", "it drains")],
    afterwards="as good as any",
)


class Token(Inside):
    """Answers as a router does to who has the token."""

    def late(self) -> list[LateRequest]:
        return [LATE]

    def explained(self, request_id: str) -> Explained:
        return Explained(request_id, [CHOICE])

    def changes(self) -> Changes:
        return Changes("Generation 1 is in force.", "", [(0.0, 1, "mine", "ana", "applied")])


class Reader:
    """Who presses keys and looks at a screen."""

    def __init__(self, pilot: Pilot[None], cluster: ServedCluster) -> None:
        self.pilot = pilot
        self.cluster = cluster

    @property
    def rows(self) -> list[str]:
        table = self.pilot.app.screen.query_one(RowTable)
        return [str(table.get_row_at(at)[0]) for at in range(table.row_count)]

    @property
    def seen(self) -> str:
        """All text of the screen on top, whether it must be scrolled to or not."""
        screen = self.pilot.app.screen
        console = Console(width=200, color_system=None, force_terminal=False)
        with console.capture() as captured:
            for each in screen.query(Static):
                console.print(each.content)
            for table in screen.query(DataTable):
                for at in range(table.row_count):
                    console.print(*table.get_row_at(at))
        return captured.get()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await self.pilot.pause(0.02)


@asynccontextmanager
async def reading(
    *names: str,
    inside: Inside | None = None,
    size: tuple[int, int] = NARROW,
    **more: dict[str, float],
) -> AsyncIterator[Reader]:
    """`more`: what workers tell besides, by names with _ for -."""
    numbers = {name.replace("_", "-"): told for name, told in more.items()}
    async with served(*names, numbers=numbers) as cluster:
        watch = Watch([cluster.url], Pace(0.2, 10.0))
        app = Top(watch, inside, sort="worker", role="")
        async with app.run_test(size=size) as pilot:
            reader = Reader(pilot, cluster)
            await reader.until(lambda: len(reader.rows) == len(names))
            await reader.until(lambda: "serving" in reader.seen)
            yield reader


async def test_a_narrow_terminal_shows_the_last_columns_beside_the_names_at_one_key() -> None:
    async with reading("decode-0", "decode-1") as reader:
        table = reader.pilot.app.screen.query_one(RowTable)
        assert table.render_line(0).text.split()[-1] == "ITL"
        await reader.press("right")
        titles = table.render_line(0).text.split()
        assert (titles[0], titles[-1]) == ("worker▲", "moved/s")
        assert table.render_line(1).text.startswith("decode-0 ")
        await reader.press("r")  # rows stand in another order, and the same columns are seen
        await reader.until(lambda: table.render_line(1).text.startswith("decode-1 "))
        assert table.render_line(0).text.split()[-1] == "moved/s"
        await reader.press("left")
        assert table.render_line(0).text.split()[-1] == "ITL"


async def test_figures_move_until_the_reader_pauses() -> None:
    async with reading("decode-0") as reader:
        assert "policy generation 1" in reader.seen
        worker = reader.cluster.workers["decode-0"]
        worker.numbers[series("penstock_requests_running")] = 77
        await reader.until(lambda: " 77 " in reader.seen)
        await reader.press("p")
        assert "PAUSED" in reader.seen
        worker.numbers[series("penstock_requests_running")] = 88
        asked = worker.told
        await reader.until(lambda: worker.told > asked + 2)
        assert " 88 " not in reader.seen
        await reader.press("p")
        await reader.until(lambda: " 88 " in reader.seen)


async def test_rows_are_sorted_and_filtered_by_keys() -> None:
    waits = {series("penstock_queued_prompt_seconds"): 5.0}
    names = ("decode-0", "decode-1", "prefill-0")
    async with reading(*names, decode_1=waits) as reader:
        assert reader.rows == [*names]
        await reader.press("r")
        assert reader.rows == [*names][::-1]
        await reader.press("greater_than_sign", "greater_than_sign", "greater_than_sign")
        assert reader.rows[0] == "decode-1"
        await reader.press("f")
        assert reader.rows == ["prefill-0"]
        assert "only prefill" in reader.seen
        await reader.press("f")
        assert reader.rows == ["decode-1", "decode-0"]
        await reader.press("f", "less_than_sign")
        assert sorted(reader.rows) == [*names]


async def test_a_reader_drills_into_a_worker_and_comes_back() -> None:
    moved = {
        series("penstock_transfer_bytes", peer="p9", direction="received", transport="tcp"): 1e9,
        series("penstock_link_setup_seconds", peer="p9"): 0.004,
    }
    async with reading("decode-0", "decode-1", decode_1=moved) as reader:
        await reader.press("down", "enter")
        await reader.until(lambda: "last five minutes" in reader.seen)
        for text in ("decode-1", "KV in use", "← p9", "link from", "4.00 ms"):
            assert text in reader.seen
        await reader.press("escape")
        assert reader.rows == ["decode-0", "decode-1"]


async def test_the_traffic_of_the_last_minutes_is_seen() -> None:
    async with reading("decode-0") as reader:
        told = reader.cluster.router
        asked = told.told
        told.numbers[series("penstock_generated_tokens")] = 1e6
        await reader.until(lambda: told.told > asked + 1)
        await reader.press("t")
        await reader.until(lambda: "tokens/s" in reader.seen and "█" in reader.seen)


async def test_who_does_not_answer_is_shown_with_since_when() -> None:
    async with reading("decode-0", "decode-1") as reader:
        reader.cluster.workers["decode-1"].text = "gone"
        await reader.until(lambda: "lost " in reader.seen)
        assert "decode-1: no answer for" in reader.seen
        await reader.press("w")
        assert "no process of Penstock" in reader.seen


async def test_late_requests_say_where_their_time_went_and_why_they_went_there() -> None:
    async with reading("decode-0", inside=Token("", None)) as reader:  # type: ignore[arg-type]
        await reader.press("l")
        await reader.until(lambda: "01234567" in reader.seen)
        assert "1 of these missed a target" in reader.seen
        assert "250 %" in reader.seen
        await reader.press("enter")
        await reader.until(lambda: "costs the least" in reader.seen)
        for text in ("0123456789abcdef", "queue 4.20 s", "wait 300 ms", "it drains", "hindsight"):
            assert text in reader.seen
        await reader.press("escape", "escape", "c")
        await reader.until(lambda: "ana" in reader.seen)
        assert "Generation 1 is in force." in reader.seen


async def test_without_the_token_a_line_says_what_is_missing() -> None:
    async with reading("decode-0") as reader:
        await reader.press("l")
        assert "--secrets-file" in reader.seen
        await reader.press("escape", "c")
        assert "--secrets-file" in reader.seen
        assert "policy generation 1" in reader.seen


async def test_what_a_change_of_policy_did_is_shown() -> None:
    async with reading("decode-0") as reader:
        told = reader.cluster.router.numbers
        await reader.until(lambda: reader.cluster.router.told > 2)
        del told[series("penstock_config_info", hash="abcdef0123456789", generation="1")]
        told[series("penstock_config_info", hash="ffff", generation="2")] = 1
        told[series("penstock_policy_generation", side="active")] = 2
        await reader.press("c")
        await reader.until(lambda: "what generation 2 did" in reader.seen)


async def test_help_names_every_key_and_q_quits() -> None:
    async with reading("decode-0") as reader:
        await reader.press("question_mark")
        for text in ("reverse the order", "pause", "quit", "ITL", "median"):
            assert text in reader.seen
        await reader.press("question_mark", "escape")
        assert reader.rows == ["decode-0"]
        await reader.press("q")
        assert not reader.pilot.app.is_running or reader.pilot.app._exit


async def test_many_workers_scroll_on_a_narrow_terminal_and_little_is_drawn_anew() -> None:
    names = [f"decode-{number:02}" for number in range(64)]
    async with reading(*names) as reader:
        table = reader.pilot.app.screen.query_one(RowTable)
        await reader.press("end")
        await reader.until(lambda: table.scroll_offset.y > 40)
        assert table.chosen == "decode-63"
        last = range(table.row_count)
        await reader.until(lambda: all(str(table.get_row_at(at)[-1]) != "-" for at in last))
        drawn: list[tuple[object, ...]] = []
        table.update_cell = lambda *cell, **_: drawn.append(cell)  # type: ignore[method-assign]
        first = reader.cluster.workers["decode-00"]
        first.numbers[series("penstock_requests_running")] = 5
        await reader.until(lambda: bool(drawn))
        assert [cell[:2] for cell in drawn] == [("decode-00", "running")]
        assert table.scroll_offset.y > 40
