"""The benchmarks' figures, from requests whose times are known; and that they run."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench import hand_over_figures, kv_transfer, serving
from bench.hand_over import HandOverCost
from bench.kv_cases import Case, Turns, parse_case, share
from penstock.load.generator import OfferedLoad, make_prompts
from penstock.load.report import Measured, as_table, percentile, summarize, summarize_added


def measured(**values: object) -> Measured:
    given = {"arrivals": [0.1, 0.15, 0.25], "num_tokens": [1, 1, 2], "prompt_tokens": 10}
    return Measured(**{**given, **values})  # type: ignore[arg-type]


def test_the_figures_of_a_load() -> None:
    figures = summarize([measured(cached_tokens=4), Measured(error="OVERLOADED")], 2.0)
    assert figures["completed"] == 1
    assert figures["errors"] == {"OVERLOADED": 1}
    assert figures["output_tokens_per_second"] == 2.0
    assert figures["cached_tokens"] == 4
    assert figures["tokens_per_message"] == pytest.approx(4 / 3, abs=1e-3)
    assert figures["ttft_ms"]["p50"] == 100.0
    assert figures["itl_ms"] == {"p50": 50.0, "p90": 100.0, "p99": 100.0}
    assert figures["tpot_ms"]["p50"] == 50.0


def test_what_the_cluster_adds() -> None:
    figures = summarize_added([measured(queue_s=0.01, forward_s=0.06)])
    assert figures["median_ms"] == 30.0


def test_a_load_of_errors_is_reported() -> None:
    load = summarize([Measured(error="NO_WORKER")], 1.0)
    assert "NO_WORKER" in as_table({"setup": "none", "load": load})
    assert summarize_added([Measured(error="NO_WORKER")])["completed"] == 0


@pytest.mark.parametrize("given", [[], ["--random-model", "54m"]])
def test_the_source_trees_own_starts_a_cluster(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def run(arguments: list[str]) -> None:
        called.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(serving, "run", run)
    monkeypatch.setattr(serving, "_write", lambda folder, size: None)
    with pytest.raises(SystemExit):
        serving.main([*given, "--requests", "5"])
    [[command, start, *others]] = called
    assert (command, start) == ("bench", "--start")
    assert others[-2:] == ["--requests", "5"]
    assert ("--model-dir" in others) is bool(given)


def test_percentiles_are_measured_values() -> None:
    assert [percentile([4, 1, 3, 2], p) for p in (50, 90, 99)] == [2, 4, 4]


def test_prompts_share_their_prefix_and_no_more() -> None:
    prompts = list(make_prompts(OfferedLoad(num_requests=3, prompt_tokens=20, shared_prefix=8)))
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 1
    assert len({tuple(prompt[8:]) for prompt in prompts}) == 3
    assert prompts == list(
        make_prompts(OfferedLoad(num_requests=3, prompt_tokens=20, shared_prefix=8))
    )


def test_turns_do_not_meet_until_the_pool_is_through() -> None:
    turns = Turns(Case(num_spans=3, span_bytes=4), pool_bytes=40)
    assert turns.num_until_repeated == 3
    moved = [turns.pairs(turn) for turn in range(3)]
    assert len({offset for pairs in moved for offset in pairs.destination.tolist()}) == 9
    assert all(pairs.fits(40, 40) for pairs in moved)


@pytest.mark.parametrize("case", ["3x5KiB", "7KiB"])
def test_streams_share_all_of_a_move(case: str) -> None:
    pairs = Turns(parse_case(case), 100_000).pairs(0)
    parts = [share(pairs, number, 4) for number in range(4)]
    shared = np.concatenate([np.arange(a, a + n) for part in parts for _, a, n in part])
    whole = np.concatenate([np.arange(a, a + n) for _, a, n in pairs])
    assert shared.tolist() == whole.tolist()


@pytest.mark.slow
def test_transports_beside_their_yardsticks(tmp_path: Path) -> None:
    figures, text = tmp_path / "figures.json", tmp_path / "figures.md"
    sizes = ["--cases", "64KiB", "40x4KiB", "--rounds", "2", "--pool-mib", "1"]
    wanted = [
        "--parts",
        "transports",
        "--doors",
        "shared_memory",
        "--json",
        str(figures),
        "--markdown",
        str(text),
    ]
    assert kv_transfer.main([*sizes, *wanted]) == 0
    found = json.loads(figures.read_text())
    speeds = {(row["case"], row["way"]): row["gigabytes_per_s"] for row in found["transports"]}
    assert {way for _, way in speeds} == {"memcpy", "shared_memory", "shared_memory + digest"}
    assert {case for case, _ in speeds} == {"64KiB", "40x4KiB"}
    assert all(speed > 0 for speed in speeds.values())
    assert "| 40x4KiB | shared_memory |" in text.read_text()


@pytest.mark.slow
@pytest.mark.prove
def test_hand_overs_of_real_clusters(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    wanted = ["--parts", "hand_over", "--doors", "shared_memory", "--lengths", "32"]
    assert kv_transfer.main([*wanted, "--hand-over-rounds", "2", "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert {(cost["overlap"], cost["num_requests"]) for cost in found["hand_overs"]} == {
        (True, 2),
        (False, 2),
    }
    assert len(found["fresh_pairs"]) == 3


@pytest.mark.parametrize(
    ("gap_s", "overlap", "is_met"),
    [(0.014, True, True), (0.03, True, False), (0.03, False, None)],
)
def test_a_hand_over_costs_what_comes_on_top_of_a_step(
    gap_s: float, overlap: bool, is_met: bool | None
) -> None:
    cost = HandOverCost(
        door="tcp", overlap=overlap, prompt_tokens=512, num_bytes=1,
        num_requests=1, num_recomputed=0, prefill_s=0.2, ttft_s=0.21,
        gap_s=gap_s, step_s=0.01, visible_s=0.001,
    )  # fmt: skip
    assert cost.share == pytest.approx((gap_s - 0.01) / 0.2)
    assert cost.is_met is is_met
    [sheet, _] = hand_over_figures.sheets([cost], [])
    assert {None: "", True: "met", False: "missed"}[is_met] == sheet.rows[0][-2]
