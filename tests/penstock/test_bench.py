"""The benchmark's figures, from requests whose times are known."""

import pytest

from bench.load import Load, make_prompts
from bench.report import Measured, as_table, percentile, summarize, summarize_added


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


def test_percentiles_are_measured_values() -> None:
    assert [percentile([4, 1, 3, 2], p) for p in (50, 90, 99)] == [2, 4, 4]


def test_prompts_share_their_prefix_and_no_more() -> None:
    prompts = make_prompts(Load(num_requests=3, prompt_tokens=20, shared_prefix=8))
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 1
    assert len({tuple(prompt[8:]) for prompt in prompts}) == 3
    assert prompts == make_prompts(Load(num_requests=3, prompt_tokens=20, shared_prefix=8))
