"""Invented traffic for planners: as long as is asked for, and nothing that comes again is known."""

import sys
from pathlib import Path

import pytest

from bench import planner
from bench.daily import even
from cluster.errors import ConfigError
from simulator.trace import Trace, TraceRequest, grain_of

LAST_ID = (1 << 64) - 1  # of those that a trace may hold


def trace_of(*ids: int) -> Trace:
    request = TraceRequest(
        arrival_s=0.0,
        num_prompt_tokens=512 * len(ids),
        num_output_tokens=1,
        grains=tuple(map(grain_of, ids)),
    )
    return Trace(name="short", grain=512, requests=(request,))


@pytest.mark.slow
def test_what_comes_again_and_again_never_shares_anything() -> None:
    found = even(trace_of(0, 1 << 63, LAST_ID), duration_s=700.0, rate=100.0)
    assert len(found.requests) > 1 << 16  # laps
    grains = [grain for each in found.requests for grain in each.grains]
    assert len(set(grains)) == len(grains)


def test_of_nothing_nothing_can_be_made() -> None:
    with pytest.raises(ConfigError, match="no requests"):
        even(Trace(name="empty", grain=512, requests=()), duration_s=1.0, rate=1.0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "line 1: it is neither JSON nor a known header"),
        ('{"timestamp": 5, "input_length": 1, "output_length": 1, "hash_ids": [1]}', "'rate'"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_trace_that_cannot_be_used_ends_the_benchmark_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, sentence: str
) -> None:
    path = tmp_path / "trace.jsonl"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(sys, "argv", ["bench.planner", "--only", "steady", "--trace", str(path)])
    with pytest.raises(SystemExit, match=sentence):
        planner.main()
