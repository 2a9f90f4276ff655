"""Figures from measured requests: percentiles, rates, a JSON value and a table. No I/O."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

PERCENTILES = (50, 90, 99)


@dataclass(slots=True, kw_only=True)
class Measured:
    """One request, as its client saw it. Times are seconds since it was sent (or, under an
    open loop, since it was due: a client that falls behind must not hide the wait)."""

    arrivals: list[float] = field(default_factory=list)  # of messages
    num_tokens: list[int] = field(default_factory=list)  # in each
    prompt_tokens: int = 0
    cached_tokens: int = 0
    router_s: float = 0.0  # received by the router to sent to the decode worker
    first_token_s: float = 0.0  # received by the router to handed to gRPC by the worker
    queue_s: float = 0.0
    prefill_s: float = 0.0
    forward_s: float = 0.0
    transfer_s: float = 0.0
    transfer_visible_s: float = 0.0
    transferred_bytes: int = 0
    recomputes: int = 0
    preemptions: int = 0
    decode_worker: str = ""
    prefill_worker: str = ""  # empty: the decode worker prefilled
    error: str = ""

    @property
    def is_remote(self) -> bool:
        """Prefilled by a prefill worker."""
        return bool(self.prefill_worker)

    @property
    def ttft_s(self) -> float:
        return self.arrivals[0]

    @property
    def gaps_s(self) -> list[float]:
        """Gives the seconds between messages."""
        return [
            later - earlier
            for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)
        ]

    @property
    def tpot_s(self) -> float | None:
        """Seconds a token, after the first message."""
        num_later = sum(self.num_tokens[1:])
        return (self.arrivals[-1] - self.arrivals[0]) / num_later if num_later else None

    @property
    def added_s(self) -> float:
        """Gives what the cluster adds to the time to first token: all but waiting and computing."""
        return self.ttft_s - self.queue_s - self.forward_s


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: a value that was measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def spread_ms(values: Iterable[float]) -> dict[str, float]:
    measured = list(values)
    if not measured:
        return {}
    return {f"p{p}": round(1000 * percentile(measured, p), 3) for p in PERCENTILES}


def summarize(requests: Sequence[Measured], seconds: float) -> dict[str, Any]:
    """The figures of one load. Errors are counted beside what they would distort."""
    done = [request for request in requests if not request.error]
    num_tokens = sum(sum(request.num_tokens) for request in done)
    num_messages = sum(len(request.arrivals) for request in done)
    prompt_tokens = sum(request.prompt_tokens for request in done)
    return {
        "requests": len(requests),
        "completed": len(done),
        "errors": dict(Counter(request.error for request in requests if request.error)),
        "seconds": round(seconds, 3),
        "requests_per_second": round(len(done) / seconds, 3),
        "output_tokens_per_second": round(num_tokens / seconds, 2),
        "total_tokens_per_second": round((num_tokens + prompt_tokens) / seconds, 2),
        "tokens_per_message": round(num_tokens / num_messages, 3) if num_messages else None,
        "prompt_tokens": prompt_tokens,
        "cached_tokens": sum(request.cached_tokens for request in done),
        "remote_prefills": sum(request.is_remote for request in done),
        "recomputes": sum(request.recomputes for request in done),
        "preemptions": sum(request.preemptions for request in done),
        "ttft_ms": spread_ms(request.ttft_s for request in done),
        "itl_ms": spread_ms(gap for request in done for gap in request.gaps_s),
        "tpot_ms": spread_ms(t for request in done if (t := request.tpot_s) is not None),
        "end_to_end_ms": spread_ms(request.arrivals[-1] for request in done),
    }


def summarize_added(requests: Sequence[Measured]) -> dict[str, Any]:
    """Summarizes what the cluster adds to TTFT, from requests that had it to themselves."""
    done = [request for request in requests if not request.error]
    if not done:
        return {"requests": len(requests), "completed": 0}
    return {
        "requests": len(requests),
        "completed": len(done),
        "remote_prefills": sum(request.is_remote for request in done),
        "median_ms": round(1000 * median(request.added_s for request in done), 3),
        "p90_ms": round(1000 * percentile([request.added_s for request in done], 90), 3),
        "ttft_median_ms": round(1000 * median(request.ttft_s for request in done), 3),
        "forward_median_ms": round(1000 * median(request.forward_s for request in done), 3),
        "queue_median_ms": round(1000 * median(request.queue_s for request in done), 3),
    }


def as_table(report: dict[str, Any]) -> str:
    """The report for people."""
    load, lines = report["load"], [report["setup"], *_shape_lines(report.get("shape")), ""]
    lines.append(f"{'':16}{'p50':>10}{'p90':>10}{'p99':>10}")
    for name in ("ttft", "itl", "tpot", "end_to_end"):
        spread = load[f"{name}_ms"]
        cells = "".join(f"{spread.get(f'p{p}', math.nan):>10.1f}" for p in PERCENTILES)
        lines.append(f"{name.replace('_', ' ') + ' ms':16}{cells}")
    lines.append("")
    for name, value in load.items():
        if not name.endswith("_ms"):
            shown = _counts(value) if name == "errors" else value
            lines.append(f"{name.replace('_', ' '):28}{shown}")
    for section in ("added_to_ttft", "router"):
        lines += ["", section.replace("_", " ") + ":"] if section in report else []
        for name, value in report.get(section, {}).items():
            lines.append(f"  {name.replace('_', ' '):26}{value}")
    return "\n".join(lines)


def _shape_lines(shape: dict[str, Any] | None) -> list[str]:
    if shape is None:
        return []
    shared = f" ({shape['shared_prefix']} shared)" if shape["shared_prefix"] else ""
    return [
        f"{shape['arrivals']}, {shape['prompt_tokens']} prompt tokens{shared},"
        f" {shape['output_tokens']} output tokens"
    ]


def _counts(errors: dict[str, int]) -> str:
    return ", ".join(f"{num} {reason}" for reason, num in errors.items()) or "none"
