"""Draws what a screen shows, as text with styles. Pure: what terminal it is for is not known."""

from collections.abc import Callable, Sequence, Set
from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from penstock.cli.top.columns import COLUMNS, cells
from penstock.cli.top.inside import Changes, Explained, ExplainedChoice, LateRequest
from penstock.cli.top.plain import concern_text, errors_text, policy_text
from penstock.cli.top.router_figures import TrafficWindow, Turn
from penstock.cli.top.texts import (
    NOTHING,
    bytes_text,
    count,
    duration,
    gigabytes,
    number,
    share_text,
    sparkline,
)
from penstock.cli.top.watch import View
from penstock.cli.top.workers import LinkFigures, PairFigures, WorkerFigures

LABEL: Final = "dim"
BAD: Final = "bold red"
WARN: Final = "yellow"
GOOD: Final = "green"
HEAD: Final = "bold"
NO_TOKEN: Final = (
    "Routers tell this only to who has the cluster's token: start penstock top with --address"
    " HOST:PORT and --secrets-file FILE, as for 'penstock status'."
)
_STYLES: Final = {
    "router": "blue",
    "queue": "red",
    "prefill": "green",
    "between": "yellow",
    "decode": "cyan",
}
_BAR: Final = 70
_SPARK: Final = 40
_Spark = tuple[str, str, Callable[[float | None], str]]  # what it is called, its field, its text


def head(view: View, *, window_s: float, at: str, note: str = "") -> Text:
    """Six lines: who is there, traffic, latencies, policy, errors, and what to look at."""
    router, traffic = view.router, view.router.traffic
    roles = [each.role for each in view.workers]
    told = Text("penstock top", style=HEAD)
    told.append(
        f"  {roles.count('prefill')} prefill, {roles.count('decode')} decode"
        f" · over {window_s:g} s · {at}",
        style=LABEL,
    )
    told.append(f"  {note}\n" if note else "\n", style=f"{WARN} reverse" if note else "")
    _facts(
        told,
        ("requests/s", number(traffic.requests_per_s)),
        ("tokens/s", number(traffic.tokens_per_s)),
        ("in flight", count(router.num_in_flight)),
        ("cached", share_text(traffic.hit_share)),
    )
    _facts(
        told,
        ("TTFT p50", duration(traffic.ttft_p50_s)),
        ("p99", duration(traffic.ttft_p99_s)),
        ("  ITL p50", duration(traffic.itl_p50_s)),
        ("p99", duration(traffic.itl_p99_s)),
    )
    told.append("policy ", style=LABEL).append(f"{policy_text(router.policy)}\n")
    told.append("errors of the last minute ", style=LABEL)
    told.append(f"{errors_text(router)}\n", style=BAD if router.errors else "")
    return told.append_text(_look_at(view))


def _facts(told: Text, *facts: tuple[str, str]) -> None:
    for name, value in facts:
        told.append(f"{name} ", style=LABEL).append(value.ljust(9), style=HEAD)
    told.rstrip()
    told.append("\n")


def _look_at(view: View) -> Text:
    if view.unheard:
        lost = view.unheard[0]
        return Text(
            f"! router {lost.url}: no answer for {duration(lost.since_s)}: {lost.error}", BAD
        )
    if not view.concerns:
        return Text("no worker stands out", GOOD)
    more = f"  (w: {len(view.concerns) - 1} more)" if len(view.concerns) > 1 else ""
    return Text(f"! {concern_text(view, 0)}{more}", BAD)


def worker_cells(worker: WorkerFigures, marks: Set[tuple[str, str]]) -> list[Text]:
    """A row of the table; what is worse than its like's is red. `marks`: worker and column."""
    told = []
    for column, text in zip(COLUMNS, cells(worker), strict=True):
        is_bad = (worker.name, column.key) in marks
        style = BAD if is_bad else ("" if text != NOTHING else LABEL)
        told.append(Text(text, style, justify="right" if column.is_number else "left"))
    return told


def concerns_page(view: View) -> RenderableType:
    lines = [Text(f"router {each.url}: {each.error}", BAD) for each in view.unheard]
    lines += [Text(concern_text(view, at)) for at in range(len(view.concerns))]
    return Group(Text("What to look at, the worst first\n", HEAD), *(lines or [Text("nothing")]))


def traffic_page(view: View, history: Sequence[TrafficWindow]) -> RenderableType:
    errors = Text.assemble(("errors of the last minute ", LABEL), errors_text(view.router))
    table = _spark_table(view.router.traffic, history, _TRAFFIC)
    return Group(Text("all requests", HEAD), Text(), table, Text(), errors)


# One worker


def worker_page(
    worker: WorkerFigures,
    history: Sequence[WorkerFigures],
    pairs: Sequence[PairFigures],
    links: Sequence[LinkFigures],
    where: str,
) -> RenderableType:
    title = Text(worker.name, HEAD).append(f"  {worker.role}  ", LABEL)
    is_well = worker.health == "serving"
    title.append(str(worker.health), GOOD if is_well else BAD)
    if worker.since_s is not None:
        title.append(f" for {duration(worker.since_s)}: {worker.error}", BAD)
    title.append(f"  {where}  {worker.version}", LABEL)
    return Group(
        title, Text(), _sparks(worker, history), Text(), _pairs_table(pairs), _links_table(links)
    )


def _sparks(worker: WorkerFigures, history: Sequence[WorkerFigures]) -> Table:
    steps = "ITL" if worker.role == "decode" else "step"  # what those of a decode worker are
    shown = [(name.replace("step", steps), field, text) for name, field, text in _SPARKED]
    return _spark_table(worker, history, shown)


def _spark_table(now: object, history: Sequence[object], shown: Sequence[_Spark]) -> Table:
    table = _table("", "now", f"{'last five minutes':<{_SPARK}}", "most")
    for name, field, text in shown:
        values = [getattr(each, field) for each in history]
        most = max((each for each in values if each is not None), default=None)
        bars = Text(sparkline(values, _SPARK), "cyan")
        told = Text(text(getattr(now, field)), HEAD)
        table.add_row(Text(name, LABEL), told, bars, Text(text(most), LABEL))
    return table


_SPARKED: Final[tuple[_Spark, ...]] = (
    ("queue", "queue_s", duration),
    ("running", "num_running", count),
    ("waiting", "num_waiting", count),
    ("KV in use", "kv_usage", share_text),
    ("hit share", "hit_share", share_text),
    ("tokens/s", "tokens_per_s", number),
    ("KV moved/s", "moved_bytes_per_s", bytes_text),
    ("KV GB/s", "gb_per_s", gigabytes),
    ("step p50", "step_p50_s", duration),
    ("step p99", "step_p99_s", duration),
)


_ARROWS: Final = {"sent": "→", "received": "←"}


def _pairs_table(pairs: Sequence[PairFigures]) -> RenderableType:
    if not pairs:
        return Text("no KV has moved between this worker and another", LABEL)
    table = _table("KV of pair", "by", "GB/s", "mean", "p99", "moved/s", "writes", "failed")
    for each in pairs:
        table.add_row(
            f"{_ARROWS.get(each.direction, '')} {each.peer}",
            each.transport,
            gigabytes(each.gb_per_s),
            duration(each.mean_s),
            duration(each.p99_s),
            bytes_text(each.moved_bytes_per_s),
            count(each.num_transfers),
            Text(count(each.num_failed), BAD if each.num_failed else ""),
        )
    return table


def _links_table(links: Sequence[LinkFigures]) -> RenderableType:
    if not links:
        return Text()
    table = _table("link from", "setup", "GB/s")
    for each in links:
        table.add_row(each.peer, duration(each.setup_s), gigabytes(each.gb_per_s))
    return Group(Text(), table)


# Late requests

LATE_COLUMNS: Final = (
    ("request", 9, False),
    ("target", 6, True),
    ("TTFT", 8, True),
    ("wait", 8, True),
    ("prefill", 8, True),
    ("transfer", 9, True),
    ("decode", 8, True),
    ("age", 7, True),
    (" where", 26, False),
)


def late_title(late: Sequence[LateRequest]) -> str:
    num = sum(each.lateness > 1 for each in late)
    return f"{num} of these missed a target; those nearest to it first, of the last ten minutes"


def late_cells(late: LateRequest) -> list[Text]:
    """A row of the table; what made it late, or nearly so, stands out."""
    phases = late.phases
    waited_s = phases["router"] + phases["queue"] if phases else None
    first = duration(late.ttft_s) if late.ttft_s is not None else late.state
    slowest = _slowest(late)
    times = {
        "TTFT": first[:8],
        "wait": duration(waited_s),
        **{name: duration(phases.get(name)) for name in ("prefill", "transfer", "decode")},
    }
    told = [Text(t, WARN if n == slowest else "", justify="right") for n, t in times.items()]
    lateness = Text(share_text(late.lateness), BAD if late.lateness > 1 else "", justify="right")
    age = Text(duration(late.age_s), justify="right")
    return [Text(late.request_id[:8]), lateness, *told, age, Text(f" {_where(late)}")]


def _slowest(late: LateRequest) -> str:
    """Names the column that counts. KV travels beside the prefill and delays only what comes after
    the first token; what TTFT has beyond wait and prefill is between processes."""
    phases, ttft_s = late.phases, late.ttft_s or 0.0
    if not phases:
        return ""
    if (late.itl_s or 0.0) / late.target_itl_s > ttft_s / late.target_ttft_s:
        return "transfer" if phases["transfer"] > phases["decode"] / 2 else "decode"
    waited_s, prefill_s = phases["router"] + phases["queue"], phases["prefill"]
    before = {"wait": waited_s, "prefill": prefill_s, "TTFT": ttft_s - waited_s - prefill_s}
    return max(before, key=lambda name: before[name])


def _where(late: LateRequest) -> str:
    if not late.decode:
        return "nowhere yet"
    return f"{late.prefill}→{late.decode}" if late.prefill else late.decode


def late_page(late: LateRequest, explained: Explained | None, missing: str) -> RenderableType:
    title = Text.assemble(("request ", LABEL), (late.request_id, HEAD))
    title.append(
        f"  {late.state}, {late.prompt_tokens} prompt tokens ({late.cached_tokens} cached),"
    )
    title.append(f" {late.tokens} tokens, {_where(late)}, policy generation {late.generation}")
    if late.moved:
        title.append(f", moved {late.moved} times", WARN)
    promised = Table.grid(padding=(0, 2))
    for name, actual_s, target_s in (
        ("TTFT", late.ttft_s, late.target_ttft_s),
        ("ITL", late.itl_s, late.target_itl_s),
    ):
        is_late = (actual_s or 0.0) > target_s
        actual = Text(duration(actual_s), BAD if is_late else HEAD)
        promised.add_row(name, actual, Text(f"target {duration(target_s)}", LABEL))
    parts: list[RenderableType] = [title, Text(), promised, Text(), _time_spent(late), Text()]
    if explained is None:
        return Group(*parts, Text(missing or "asking the router why it went there ...", LABEL))
    for at, each in enumerate(explained.tries, start=1):
        parts += _choice_parts(at, each, late)
    return Group(*parts)


def _time_spent(late: LateRequest) -> RenderableType:
    """One after another; what the first token took besides is of calls between processes."""
    if not late.phases:
        return Text("where its time went is known when it has finished", LABEL)
    before = {name: late.phases[name] for name in ("router", "queue", "prefill")}
    between_s = max(0.0, (late.ttft_s or 0.0) - sum(before.values()))
    times = {**before, "between": between_s, "decode": late.phases["decode"]}
    total_s = sum(times.values()) or 1.0
    bar, legend = Text(), Text()
    for name, seconds in times.items():
        bar.append("█" * round(_BAR * seconds / total_s), _STYLES[name])
        legend.append("■ ", _STYLES[name]).append(f"{name} ", LABEL)
        legend.append(f"{duration(seconds)}  ")
    note = "between: calls between processes, and whoever was held"
    if moved_s := late.phases["transfer"]:
        note += f"; its KV travelled for {duration(moved_s)} beside all that"
    return Group(bar, legend, Text(note, LABEL))


def _choice_parts(at: int, choice: ExplainedChoice, late: LateRequest) -> list[RenderableType]:
    why = Text.assemble((f"try {at}: " if late.moved else "why there: ", LABEL), choice.sentence)
    predicted = Text.assemble(("predicted TTFT ", LABEL), duration(choice.predicted_ttft_s))
    if choice.afterwards:
        predicted.append("   in hindsight ", LABEL).append(choice.afterwards)
    table = _table("candidate", "price", "made of")
    for who, price_s, terms in choice.candidates:
        made = " + ".join(f"{name} {duration(seconds)}" for name, seconds in terms)
        table.add_row(who, duration(price_s), Text(made, LABEL))
    left = [Text(f"left out: {who}, {reason}", LABEL) for who, reason in choice.left_out]
    return [why, predicted, Text(), table, *left]


# The policy


def policy_page(view: View, changes: Changes | None, missing: str) -> RenderableType:
    told = Text.assemble(("policy ", LABEL), (policy_text(view.router.policy), HEAD))
    parts: list[RenderableType] = [told]
    trial = view.router.policy
    if trial.canary is not None:
        placed, failed = trial.trial_requests["active"], trial.trial_errors["active"]
        parts.append(Text(f"the one in force meanwhile: {placed:.0f} placed, {failed:.0f} failed"))
    parts += [Text(), _turn_table(view.turn), Text()]
    if changes is None:
        return Group(*parts, Text(missing, LABEL))
    parts.append(Text.assemble(("because ", LABEL), changes.last_change))
    if changes.trial:
        parts.append(Text.assemble(("trial ", LABEL), changes.trial))
    table = _table("when (UTC)", "generation", "policy", "by", "why")
    for at_s, generation, name, by, why in changes.recent[:10]:
        at = f"{datetime.fromtimestamp(at_s, tz=UTC):%m-%d %H:%M:%S}"
        table.add_row(at, str(generation), name, by, why)
    return Group(*parts, Text(), table)


def _turn_table(turn: Turn | None) -> RenderableType:
    if turn is None:
        return Text(
            "it has not changed while this was looking: what a change does is shown here", LABEL
        )
    before, after = f"{duration(turn.before_s)} before", f"{duration(turn.after_s)} after"
    table = _table(f"what generation {turn.generation} did", before, after, "change")
    for name, field, text in _TRAFFIC:
        was, now = _field(turn.before, field), _field(turn.after, field)
        table.add_row(Text(name, LABEL), text(was), Text(text(now), HEAD), _change(was, now))
    return table


_TRAFFIC: Final[tuple[_Spark, ...]] = (
    ("requests/s", "requests_per_s", number),
    ("tokens/s", "tokens_per_s", number),
    ("TTFT p50", "ttft_p50_s", duration),
    ("TTFT p99", "ttft_p99_s", duration),
    ("ITL p50", "itl_p50_s", duration),
    ("ITL p99", "itl_p99_s", duration),
    ("cached", "hit_share", share_text),
    ("errors", "error_share", share_text),
)


def _field(traffic: TrafficWindow, field: str) -> float | None:
    value: float | None = getattr(traffic, field)
    return value


def _change(was: float | None, now: float | None) -> str:
    return f"{100 * (now / was - 1):+.0f} %" if was and now is not None else NOTHING


# Help


def help_page(keys: Sequence[tuple[str, str]]) -> RenderableType:
    table = _table("key", "what it does")
    for key, meaning in keys:
        table.add_row(Text(key, HEAD), meaning)
    columns = _table("column", "what it says")
    for column in COLUMNS:
        columns.add_row(Text(column.title, HEAD), column.meaning)
    return Group(table, Text(), columns, Text(), Text(_NOTES, LABEL))


_NOTES: Final = (
    "Rates are differences of counters, quantiles of buckets, over the window; - is where nothing"
    " happened. A figure is red where it is worse than its like's: an ITL of 1.5 times the median"
    " of the others of its role, a queue of twice, KV at half the speed."
)


def _table(*titles: str) -> Table:
    """Numbers stand on the right: all columns but those of words."""
    table = Table(box=None, pad_edge=False, header_style=LABEL)
    for title in titles:
        table.add_column(title, justify="right" if title in _NUMBERS else "left")
    return table


_NUMBERS: Final = {"now", "most", "GB/s", "mean", "p99", "moved/s", "writes", "failed", "setup"}
