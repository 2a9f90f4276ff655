"""Writes the dashboard for Grafana: `python -m deploy.monitoring.dashboard > dashboard.json`."""

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

UID: Final = "penstock"
_WIDTH, _HEIGHT = 8, 8  # of a panel; 24 are a row
_RATE: Final = "$__rate_interval"
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


class Curve(NamedTuple):
    expr: str
    legend: str


class Panel(NamedTuple):
    title: str
    unit: str  # as Grafana calls it
    lines: tuple[Curve, ...]


def _quantile(q: float, metric: str, *by: str, only: str = "") -> str:
    labels = ", ".join(("le", *by))
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{only}[{_RATE}])))"


def _quantiles(metric: str) -> tuple[Curve, ...]:
    return tuple(Curve(_quantile(q, metric), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99))


def _p95(metric: str, by: str, only: str = "") -> tuple[Curve, ...]:
    return (Curve(_quantile(0.95, metric, by, only=only), _legend(by)),)


def _rate(metric: str, *by: str) -> tuple[Curve, ...]:
    return (Curve(_sum(metric, *by), _legend(*by)),)


def _each(metric: str, *by: str) -> tuple[Curve, ...]:
    return (Curve(f"max by ({', '.join(by)}) ({metric})", _legend(*by)),)


def _legend(*by: str) -> str:
    return " ".join(f"{{{{{each}}}}}" for each in by)


def _sum(metric: str, *by: str) -> str:
    over = f" by ({', '.join(by)}) " if by else ""
    return f"sum{over}(rate({metric}[{_RATE}]))"


def _mean(metric: str) -> str:
    return f"{_sum(f'{metric}_sum')} / {_sum(f'{metric}_count')}"


_RECEIVED: Final = '{direction="received"}'
_CACHED: Final = _sum("penstock_cached_tokens_total")
_PREDICTED: Final = _sum("penstock_predicted_cached_tokens_total")
_PROMPT: Final = _sum("penstock_prompt_tokens_total")
_IN_TIME: Final = _sum("penstock_class_in_time_total", "class")
_STARTED: Final = _sum("penstock_class_started_total", "class")
_PHASES: Final = ("queue", "prefill", "transfer", "decode")

ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Requests": (
        Panel("Requests by outcome", "reqps", _rate("penstock_requests_total", "outcome")),
        Panel("Time to first token", "s", _quantiles("penstock_time_to_first_token_seconds")),
        Panel("Between tokens", "s", _quantiles("penstock_inter_token_seconds")),
        Panel("Whole answers", "s", _quantiles("penstock_request_duration_seconds")),
        Panel(
            "Tokens",
            "short",
            (
                Curve(_PROMPT, "prompt"),
                Curve(_CACHED, "of these cached"),
                Curve(_sum("penstock_generated_tokens_total"), "generated"),
            ),
        ),
        Panel(
            "In flight",
            "short",
            (
                Curve("sum(penstock_requests_in_flight)", "in flight"),
                Curve("sum(penstock_parked_requests)", "parked"),
            ),
        ),
    ),
    "Where the time goes": (
        Panel(
            "Of a request, mean",
            "s",
            tuple(Curve(_mean(f"penstock_request_{each}_seconds"), each) for each in _PHASES),
        ),
        Panel(
            "First token in time",
            "percentunit",
            (Curve(f"{_IN_TIME} / {_STARTED}", "{{class}}"),),
        ),
        Panel(
            "Failures and refusals",
            "reqps",
            _rate('penstock_requests_total{outcome!="finished"}', "reason"),
        ),
    ),
    "Placing": (
        Panel("A decision", "s", _quantiles("penstock_decision_seconds")),
        Panel(
            "Cached share of prompts",
            "percentunit",
            (
                Curve(f"{_CACHED} / {_PROMPT}", "found"),
                Curve(f"{_PREDICTED} / {_PROMPT}", "predicted"),
            ),
        ),
        Panel(
            "Actual / predicted time to first token",
            "short",
            _each("penstock_first_token_prediction_ratio", "percentile"),
        ),
        Panel("Index age", "s", _each("penstock_index_age_seconds", "worker")),
        Panel(
            "Index memory",
            "bytes",
            (
                Curve("max(penstock_index_bytes)", "used"),
                Curve("max(penstock_index_budget_bytes)", "budget"),
            ),
        ),
        Panel("Policy in force", "short", _each("penstock_policy_generation", "side")),
    ),
    "Workers": (
        Panel("Members", "short", _each("penstock_members", "role", "state")),
        Panel("Running", "short", _each("penstock_requests_running", "worker")),
        Panel("Waiting", "short", _each("penstock_requests_waiting", "worker")),
        Panel("KV in use", "percentunit", _each("penstock_kv_usage_ratio", "worker")),
        Panel("KV in quarantine", "bytes", _each("penstock_kv_quarantined_bytes", "worker")),
        Panel("Preemptions", "ops", _rate("penstock_preemptions_total", "worker")),
        Panel("A step, p95", "s", _p95("penstock_step_seconds", "worker")),
        Panel("Dead work", "s", _rate("penstock_dead_work_seconds_total", "worker")),
        Panel("Loop lag, p95", "s", _p95("penstock_event_loop_lag_seconds", "instance")),
    ),
    "KV transfer": (
        Panel(
            "Bytes received",
            "Bps",
            _rate(f"penstock_transfer_bytes_total{_RECEIVED}", "peer", "worker"),
        ),
        Panel("Writing, p95", "s", _p95("penstock_transfer_seconds", "transport", _RECEIVED)),
        Panel("Failures", "ops", _rate("penstock_transfer_failures_total", "reason")),
    ),
}


def dashboard() -> dict[str, Any]:
    return {
        "uid": UID,
        "title": "Penstock",
        "tags": ["penstock"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                }
            ]
        },
        "panels": list(_panels()),
    }


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in ROWS.items():
        number += 1
        at = {"x": 0, "y": top, "w": 24, "h": 1}
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "gridPos": at,
            "collapsed": False,
            "panels": [],
        }
        top += 1
        for index, panel in enumerate(panels):
            number += 1
            down, across = divmod(index, 24 // _WIDTH)
            at = {"x": across * _WIDTH, "y": top + down * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            yield _panel(number, panel, at)
        top += -(-len(panels) // (24 // _WIDTH)) * _HEIGHT


def _panel(number: int, panel: Panel, at: dict[str, int]) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": _SOURCE,
            "expr": line.expr,
            "legendFormat": line.legend,
        }
        for index, line in enumerate(panel.lines)
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": at,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi"},
        },
        "targets": targets,
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
