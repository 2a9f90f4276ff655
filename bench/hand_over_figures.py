"""Figures of hand-overs: a JSON value and sheets."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.hand_over import KV_BYTES_PER_TOKEN, MOST_SHARE, Fresh, HandOverCost
from bench.sheets import Sheet, number, verdict


def as_json(costs: Sequence[HandOverCost], fresh: Sequence[Fresh]) -> dict[str, Any]:
    return {
        "kv_bytes_per_token": KV_BYTES_PER_TOKEN,
        "hand_overs": [
            {**asdict(cost), "cost_s": cost.cost_s, "share": cost.share, "is_met": cost.is_met}
            for cost in costs
        ],
        "fresh_pairs": [asdict(pair) for pair in fresh],
    }


def sheets(costs: Sequence[HandOverCost], fresh: Sequence[Fresh]) -> list[Sheet]:
    return [_cost_sheet(costs), _fresh_sheet(fresh)]


def _cost_sheet(costs: Sequence[HandOverCost]) -> Sheet:
    return Sheet(
        title=(
            "What a hand-over costs: the wait for the second token beyond a decode step"
            f" (medians; {KV_BYTES_PER_TOKEN:,} bytes of KV a token)"
        ),
        columns=(
            *("transport", "layers leave", "tokens", "MB", "TTFT ms", "prefill ms", "2nd token ms"),
            *(
                "step ms",
                "KV late ms",
                "cost ms",
                "of prefill",
                f"<= {MOST_SHARE:.0%}",
                "recomputed",
            ),
        ),
        rows=[_cost_cells(cost) for cost in costs],
        num_names=2,
    )


def _cost_cells(cost: HandOverCost) -> tuple[str, ...]:
    return (
        cost.door,
        "as computed" if cost.overlap else "at the end",
        number(cost.prompt_tokens, 0),
        number(cost.num_bytes / 1e6, 0),
        number(1e3 * cost.ttft_s, 0),
        number(1e3 * cost.prefill_s, 0),
        number(1e3 * cost.gap_s, 1),
        number(1e3 * cost.step_s, 1),
        number(1e3 * cost.visible_s, 1),
        number(1e3 * cost.cost_s, 1),
        f"{cost.share:.1%}",
        verdict(cost.is_met),
        f"{cost.num_recomputed} of {cost.num_requests + cost.num_recomputed}",
    )


def _fresh_sheet(fresh: Sequence[Fresh]) -> Sheet:
    return Sheet(
        title="A fresh pair: its first request against its second",
        columns=(
            *("transport", "after", "TTFT, 1st, ms", "2nd, ms"),
            *("second token, 1st, ms", "2nd, ms", "recomputed"),
        ),
        rows=[
            (
                pair.door,
                pair.after,
                *(number(1e3 * seconds, 1) for seconds in _times(pair)),
                str(pair.num_recomputed),
            )
            for pair in fresh
        ],
        num_names=2,
    )


def _times(pair: Fresh) -> tuple[float, ...]:
    return pair.first_ttft_s, pair.second_ttft_s, pair.first_gap_s, pair.second_gap_s
