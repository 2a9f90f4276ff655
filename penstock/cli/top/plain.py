"""What a script reads of it: one table, or one value. Pure."""

from dataclasses import asdict
from typing import Any

from penstock.cli.top.columns import BY_KEY, COLUMNS, arranged, cells
from penstock.cli.top.router_figures import PolicyFigures, RouterFigures
from penstock.cli.top.texts import NOTHING, count, duration, number, share_text
from penstock.cli.top.watch import View

TITLES = [column.title for column in COLUMNS]


def table(view: View, *, by: str, role: str) -> list[list[str]]:
    is_number = BY_KEY[by].is_number  # the largest first
    return [cells(w) for w in arranged(view.workers, by=by, is_descending=is_number, role=role)]


def lines(view: View) -> list[str]:
    """What stands above the table, line by line."""
    traffic, router = view.router.traffic, view.router
    told = [
        f"{number(traffic.requests_per_s)} requests/s, {number(traffic.tokens_per_s)} tokens/s,"
        f" {count(router.num_in_flight)} in flight, {share_text(traffic.hit_share)} cached",
        f"TTFT p50 {duration(traffic.ttft_p50_s)}, p99 {duration(traffic.ttft_p99_s)};"
        f" ITL p50 {duration(traffic.itl_p50_s)}, p99 {duration(traffic.itl_p99_s)}",
        f"errors of the last minute: {errors_text(router)}",
        f"policy {policy_text(router.policy)}",
    ]
    told += [
        f"router {each.url}: NO ANSWER for {duration(each.since_s)}: {each.error}"
        for each in view.unheard
    ]
    return told + [f"look at: {concern_text(view, at)}" for at in range(len(view.concerns))]


def concern_text(view: View, at: int) -> str:
    found = view.concerns[at]
    return f"{found.worker}: {found.sentence}" if found.worker else found.sentence


def errors_text(router: RouterFigures) -> str:
    return ", ".join(f"{num:.0f} {reason}" for reason, num in router.errors.items()) or "none"


def policy_text(policy: PolicyFigures) -> str:
    generation = NOTHING if policy.generation is None else str(policy.generation)
    told = f"generation {generation}" + (f" ({policy.digest[:8]})" if policy.digest else "")
    if policy.canary is None:
        return f"{told}, none on trial"
    requests, errors = policy.trial_requests["canary"], policy.trial_errors["canary"]
    return (
        f"{told}; ON TRIAL generation {policy.canary} for {share_text(policy.canary_share)} of the"
        f" requests: {count(requests)} placed, {count(errors)} failed"
    )


def value(view: View) -> dict[str, Any]:
    """All figures under the names that the code has for them; what is not known is null."""
    router = asdict(view.router)
    router["traffic"] = view.router.traffic._asdict()
    return {
        "router": router,
        "workers": [asdict(each) for each in sorted(view.workers, key=lambda each: each.name)],
        "concerns": [each._asdict() for each in view.concerns],
        "unheard": [each._asdict() for each in view.unheard],
    }
