"""Rules and dashboard as data; and promtool, which knows what Prometheus makes of them."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from cluster.metrics.metric import Kind
from cluster.metrics.process import PROCESS
from deploy.monitoring.dashboard import dashboard
from router.metrics.table import ROUTER
from worker.metrics import WORKER

FOLDER: Final = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
RULES: Final = FOLDER / "rules.yaml"
LACKING: Final = "promtool is missing: scripts/machines installs it."
# By Prometheus itself, of each target.
_OF_PROMETHEUS: Final = {"up"}
_WORD: Final = re.compile(r"\b(?:penstock|vllm)[a-z0-9_:]+|\bup\b")


def promtool(*arguments: str | Path, said: str = "") -> str:
    """What it prints. Raises AssertionError with that, where it finds fault."""
    command = ["promtool", *map(str, arguments)]
    ended = subprocess.run(command, input=said, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def need_promtool(request: pytest.FixtureRequest) -> None:
    """Has a test that lacks it listed by its name."""
    if shutil.which("promtool") is None:
        pytest.skip(f"{LACKING} Not run: {request.node.nodeid}")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def expressions() -> Iterator[str]:
    """All of the rules and of the dashboard."""
    yield from (rule["expr"] for rule in rules())
    yield from (
        target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())
    )


def named(expression: str) -> set[str]:
    """The metrics that it asks for."""
    without = re.sub(r'\{[^}]*\}|"[^"]*"|by \([^)]*\)', " ", expression)
    return set(_WORD.findall(without)) - {"penstock"}


def known() -> set[str]:
    """What there is to ask for."""
    found = set(_OF_PROMETHEUS) | {rule["record"] for rule in rules() if "record" in rule}
    for metric in (*ROUTER, *WORKER, *PROCESS):
        if metric.kind is Kind.HISTOGRAM:
            found |= {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")}
        else:
            found.add(metric.scraped_name)
    return found


def labels_asked() -> Iterator[tuple[str, str, str]]:
    """Each metric that a selector narrows, with the label and its value or pattern."""
    for expression in expressions():
        for name, inside in re.findall(r"(penstock_[a-z_]+)\{([^}]*)\}", expression):
            for label, pattern in re.findall(r'(\w+)\s*(?:=~|!=|!~|=)\s*"([^"]*)"', inside):
                yield name, label, pattern
