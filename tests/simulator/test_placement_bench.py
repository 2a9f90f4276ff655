"""The grid that tells where the default placement rule is not the best: `bench/placement.py`."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench import disaggregate, placement, placement_runs
from bench.placement_cells import TRAFFIC, cells, digest_of, rivals
from router.policies.least_work import LeastWork
from router.policies.priced import Priced
from router.policy import Disaggregate, Policy
from simulator.report import Report


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["placement", *arguments])
    return placement.main()


def test_where_nothing_can_be_fetched_nobody_plans_to() -> None:
    grid = list(cells({"burst of 32": TRAFFIC["burst of 32"]}, caches=(300_000,)))
    found = {cell.link: set(rivals(cell)) for cell in grid}
    assert found["20GB/s"] - found["none"] == {"mooncake_algorithm1"}
    assert {"priced, no fetch", "mooncake_algorithm1, no fetch"} < found["none"]


def test_the_smallest_burst_is_judged_and_what_others_did_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """32 prompts of 16,896 tokens at once, of which only the last grain is their own."""
    baselines, verdicts = tmp_path / "baselines.json", tmp_path / "verdicts.json"
    arguments = ("--only", "burst of 32", "--baselines", str(baselines), "--json", str(verdicts))
    code = run(monkeypatch, *arguments)
    said = capsys.readouterr().out
    assert "mean TTFT s: " in said
    assert "burst of 32 | 0.3M | 20GB/s | 1" in said
    judged = json.loads(verdicts.read_text())
    assert len(judged) == 6
    assert code == any(one["is_beyond"] for cell in judged for one in cell)
    assert not any("priced" in key for key in json.loads(baselines.read_text()))

    measured = []
    replayed = placement_runs.replayed

    def counted(*given: object) -> object:
        measured.append(given[1])
        return replayed(*given)  # type: ignore[arg-type]

    counted.__name__ = replayed.__name__
    monkeypatch.setattr(placement, "replayed", counted)
    assert run(monkeypatch, *arguments) == code
    assert all(isinstance(rule, Priced) for rule in measured)
    assert json.loads(verdicts.read_text()) == judged


def test_the_full_simulator_judges_the_default_by_the_terms_of_the_others_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    simulate = placement_runs.simulate

    def seen(*given: Any, policy: Policy, **others: Any) -> Report:
        asked.append((type(policy.rule), policy.disaggregate))
        return simulate(*given, policy=policy, **others)

    monkeypatch.setattr(placement_runs, "simulate", seen)
    run(monkeypatch, "--full", "--only", "burst of 32", "--against", "least_work")
    said = capsys.readouterr().out
    assert asked == [
        (Priced, Disaggregate.AUTO),
        (Priced, Disaggregate.ALWAYS),
        (LeastWork, Disaggregate.AUTO),
    ]
    assert "good share: 0 of 1 cells" in said
    assert "always disaggregated: 0 of 1 cells" in said


def test_what_was_measured_on_other_requests_is_not_taken_for_these() -> None:
    burst, other = TRAFFIC["burst of 32"], TRAFFIC["trickle"]
    assert digest_of(burst, 0) != digest_of(other, 0)
    assert digest_of(other, 0) != digest_of(other, 1)


def test_unknown_traffic_is_told_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="giant_prefix"):
        run(monkeypatch, "--only", "floods")


@pytest.mark.parametrize(
    ("bench", "arguments"),
    [
        (placement, ("--rule", "best")),
        (placement, ("--trace", "none", "--only", "none")),
        (disaggregate, ("--trace", "none")),
    ],
)
def test_what_is_wrong_ends_in_a_sentence(
    bench: ModuleType, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit, match=r"none cannot be read|is no rule"):
        bench.main()
