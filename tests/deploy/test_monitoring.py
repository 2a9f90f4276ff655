"""Rules and dashboard ask for what there is; each alert fires when it should, and none when all is
well."""

import json
import re
from pathlib import Path

import pytest
import yaml

from cluster.metrics.metric import Metric
from cluster.metrics.process import PROCESS
from deploy.monitoring.dashboard import dashboard
from router.metrics.table import ROUTER
from tests.deploy.monitoring import (
    FOLDER,
    RULES,
    alerts,
    expressions,
    known,
    labels_asked,
    named,
    need_promtool,
    promtool,
)
from tests.docs.pages import PAGES
from worker.metrics import WORKER

METRICS = {metric.name: metric for metric in (*ROUTER, *WORKER, *PROCESS)}
# Series by name: a value a minute, from the first. All is well with them.
WELL = {
    'up{job="penstock-router", instance="r"}': "1x60",
    'up{job="penstock-worker", instance="w"}': "1x60",
    'penstock_requests_total{outcome="finished", reason=""}': "0+600x60",
    'penstock_requests_total{outcome="failed", reason="INTERNAL"}': "0x60",
    'penstock_requests_total{outcome="refused", reason="OVERLOADED"}': "0x60",
    "penstock_parked_longest_seconds": "0x60",
    "penstock_dead_work_seconds_total": "0x60",
    'penstock_members{role="decode", state="serving", instance="r"}': "1x60",
    'penstock_members{role="decode", state="away", instance="r"}': "0x60",
    'penstock_members{role="decode", state="crash_looping", instance="r"}': "0x60",
    'penstock_members{role="decode", state="not_serving", instance="r"}': "0x60",
    "penstock_store_up": "1x60",
    'penstock_index_age_seconds{worker="d"}': "0.1x60",
    "penstock_index_forgotten_grains_total": "0x60",
    "penstock_predicted_cached_tokens_total": "0+1000x60",
    "penstock_cached_tokens_total": "0+1000x60",
    "penstock_prompt_tokens_total": "0+2000x60",
    "penstock_config_last_reload_successful": "1x60",
    "penstock_api_keys_are_current": "1x60",
    "penstock_certificate_is_current": "1x60",
    "penstock_certificate_expires_in_seconds": "7776000x60",
    'penstock_policy_generation{side="active", instance="r"}': "3x60",
    'penstock_policy_generation{side="active", instance="other"}': "3x60",
    'penstock_class_started_total{class="default"}': "0+600x60",
    'penstock_class_in_time_total{class="default"}': "0+600x60",
    "penstock_step_age_seconds": "0.1x60",
    "penstock_kv_usage_ratio": "0.5x60",
    "penstock_preemptions_total": "0x60",
    "penstock_kv_quarantined_bytes": "0x60",
    "penstock_kv_pool_bytes": "1000x60",
    "penstock_hand_overs_total": "0+600x60",
    "penstock_hand_over_recomputes_total": "0x60",
    'penstock_transfer_failures_total{reason="digest"}': "0x60",
    'penstock_event_loop_lag_seconds_bucket{le="0.1"}': "0+240x60",
    'penstock_event_loop_lag_seconds_bucket{le="0.25"}': "0+240x60",
    'penstock_event_loop_lag_seconds_bucket{le="+Inf"}': "0+240x60",
    "penstock_dropped_series": "0x60",
}
# What goes wrong after ten minutes, by the alert that it is for.
WRONG = {
    "PenstockRequestsFail": {
        'penstock_requests_total{outcome="failed", reason="INTERNAL"}': "0x10 0+30x50"
    },
    "PenstockRequestsTurnedAway": {
        'penstock_requests_total{outcome="refused", reason="OVERLOADED"}': "0x10 0+30x50"
    },
    "PenstockLate": {'penstock_class_in_time_total{class="default"}': "0+600x10 6000+300x50"},
    "PenstockRequestsParked": {"penstock_parked_longest_seconds": "0x10 20x50"},
    "PenstockDeadWork": {"penstock_dead_work_seconds_total": "0x10 0+30x50"},
    "PenstockRouterDown": {'up{job="penstock-router", instance="r"}': "1x10 0x50"},
    "PenstockNoDecodeWorker": {
        'penstock_members{role="decode", state="serving", instance="r"}': "1x10 0x50"
    },
    "PenstockWorkerAway": {
        'penstock_members{role="decode", state="away", instance="r"}': "0x10 1x50"
    },
    "PenstockWorkerCrashLoops": {
        'penstock_members{role="decode", state="crash_looping", instance="r"}': "0x10 1x50"
    },
    "PenstockWorkerNotServing": {
        'penstock_members{role="decode", state="not_serving", instance="r"}': "0x10 1x50"
    },
    "PenstockWorkersUnscraped": {'up{job="penstock-worker", instance="w"}': "1x10 0x50"},
    "PenstockStoreDown": {"penstock_store_up": "1x10 0x50"},
    "PenstockIndexStale": {'penstock_index_age_seconds{worker="d"}': "0x10 30x50"},
    "PenstockIndexForgets": {"penstock_index_forgotten_grains_total": "0x10 0+5x50"},
    "PenstockCacheMispredicted": {"penstock_cached_tokens_total": "0+1000x10 10000+500x50"},
    "PenstockPolicyReloadFailed": {"penstock_config_last_reload_successful": "1x10 0x50"},
    "PenstockKeysNotCurrent": {"penstock_api_keys_are_current": "1x10 0x50"},
    "PenstockCertificateNotCurrent": {"penstock_certificate_is_current": "1x10 0x50"},
    "PenstockCertificateEnds": {"penstock_certificate_expires_in_seconds": "86400x60"},
    "PenstockPoliciesDiffer": {
        'penstock_policy_generation{side="active", instance="other"}': "3x10 4x50"
    },
    "PenstockEngineStuck": {"penstock_step_age_seconds": "0x10 30x50"},
    "PenstockKvFull": {"penstock_kv_usage_ratio": "0.5x10 0.99x50"},
    "PenstockPreempting": {"penstock_preemptions_total": "0x10 0+60x50"},
    "PenstockQuarantine": {"penstock_kv_quarantined_bytes": "0x10 200x50"},
    "PenstockHandOversFail": {"penstock_hand_over_recomputes_total": "0x10 0+60x50"},
    "PenstockKvCorrupt": {
        'penstock_transfer_failures_total{reason="digest"}': "0x10 0+1x50",
    },
    "PenstockLoopHeld": {'penstock_event_loop_lag_seconds_bucket{le="0.1"}': "0+240x10 2400x50"},
    "PenstockSeriesDropped": {"penstock_dropped_series": "0x10 3x50"},
}


def test_rules_and_panels_ask_for_metrics_that_there_are() -> None:
    assert {name for each in expressions() for name in named(each)} <= known()


def test_they_narrow_by_labels_and_values_that_there_are() -> None:
    asked = list(labels_asked())
    assert len(asked) > 10
    for name, label, pattern in asked:
        metric: Metric[object] = METRICS[re.sub(r"_(total|bucket|sum|count)$", "", name)]  # type: ignore[assignment]
        [found] = [each for each in metric.labels if each.name == label]
        assert all(found.allows(value) for value in pattern.split("|")), (name, label, pattern)


def test_the_dashboard_is_the_one_that_is_written() -> None:
    committed = json.loads((FOLDER / "dashboard.json").read_text())
    assert committed == dashboard(), "python -m deploy.monitoring.dashboard > dashboard.json"
    numbers = [panel["id"] for panel in committed["panels"]]
    assert len(numbers) == len(set(numbers))


def test_of_each_alert_the_page_says_what_to_do() -> None:
    section = PAGES["docs/operations.md"].partition("\n## Alerts\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(Penstock\w+)` \| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    assert [name for name, *_ in rows] == list(alerts())
    for rule in alerts().values():
        assert rule["annotations"]["runbook"] == "docs/operations.md#alerts"
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


@pytest.mark.slow
def test_prometheus_takes_them(request: pytest.FixtureRequest) -> None:
    need_promtool(request)
    promtool("check", "rules", RULES)
    promtool("check", "config", FOLDER / "prometheus.yaml")


@pytest.mark.slow
def test_each_alert_fires_for_what_it_is_for_and_none_when_all_is_well(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    need_promtool(request)
    assert WRONG.keys() == alerts().keys()
    cases = [_case(WELL, 'max_over_time(ALERTS{alertstate="firing"}[60m])', [])]
    for name, wrong in WRONG.items():
        assert wrong.keys() <= WELL.keys()
        fires = f'count by (alertname) (ALERTS{{alertstate="firing", alertname="{name}"}})'
        cases.append(
            _case(WELL | wrong, fires, [{"labels": f'{{alertname="{name}"}}', "value": 1}])
        )
    file = tmp_path / "cases.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": cases}))
    promtool("test", "rules", file)


def _case(series: dict[str, str], expr: str, samples: list[object]) -> dict[str, object]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": each} for name, each in series.items()],
        "promql_expr_test": [{"expr": expr, "eval_time": "60m", "exp_samples": samples}],
    }
