"""Traces: both public formats, what a replayer must not get wrong, and files that are broken."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError
from cluster.types import GrainHash
from simulator.synthetic import conversations, fan_outs, shared_prefixes
from simulator.trace import Trace, load_trace


def write_trace(trace: Trace, path: Path) -> None:
    """Mooncake's format, compressed."""
    numbers: dict[GrainHash, int] = {}
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        for each in trace.requests:
            row = {
                "timestamp": round(each.arrival_s * 1e3),
                "input_length": each.num_prompt_tokens,
                "output_length": each.num_output_tokens,
                "hash_ids": [numbers.setdefault(grain, len(numbers)) for grain in each.grains],
            }
            file.write(json.dumps(row).encode() + b"\n")


def write_mooncake(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(timestamp: int, ids: list[int], **others: Any) -> dict[str, Any]:
    length = {"input_length": len(ids) * 512 - 100, "output_length": 7}
    return {"timestamp": timestamp, "hash_ids": ids, **length, **others}


def test_a_mooncake_trace_keeps_what_prompts_share(tmp_path: Path) -> None:
    rows = [row(500, [0, 1, 2]), row(900, [0, 1, 3]), row(2600, [0, 1, 2, 4])]
    trace = load_trace(write_mooncake(tmp_path / "t.jsonl", rows))
    assert [each.arrival_s for each in trace.requests] == [0.0, 0.4, 2.1]
    assert [each.num_prompt_tokens for each in trace.requests] == [1436, 1436, 1948]
    first, second, third = (each.grains for each in trace.requests)
    assert first[:2] == second[:2] == third[:2]
    assert first[2] == third[2] != second[2]
    assert trace.ideal_hit_tokens() == 2 * 512 + 3 * 512


def test_a_compressed_trace_is_read_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row(0, [1])).encode() + b"\n" + b"broken"))
    assert len(load_trace(path, limit=1).requests) == 1
    with pytest.raises(ConfigError, match="line 2"):
        load_trace(path)


def test_arrivals_recorded_in_bins_are_spread_inside_them(tmp_path: Path) -> None:
    rows = [row(3000 * (i // 10) + (i // 10) % 2, [i]) for i in range(100)]  # they wobble
    path = write_mooncake(tmp_path / "t.jsonl", rows)
    trace = load_trace(path, seed=1)
    arrivals = [each.arrival_s for each in trace.requests]
    assert arrivals == sorted(arrivals)
    assert len(set(arrivals)) == 100
    assert [int(arrival // 3) for arrival in arrivals] == [i // 10 for i in range(100)]
    assert load_trace(path, seed=1) == trace
    assert load_trace(path, seed=2) != trace


def test_an_azure_trace_shares_nothing(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0319600,3180,0\n"
    )
    trace = load_trace(path)
    assert [round(each.arrival_s, 4) for each in trace.requests] == [0.0, 0.052]
    assert [each.num_output_tokens for each in trace.requests] == [10, 1]
    assert len(trace.requests[0].grains) == 10
    assert trace.ideal_hit_tokens() == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"input_length": 0}, "'input_length' must be a whole number from 1"),
        ({"input_length": True}, "'input_length'"),
        ({"input_length": 1 << 40}, "'input_length'"),
        ({"output_length": -1}, "'output_length'"),
        ({"timestamp": 1.5}, "'timestamp'"),
        ({"hash_ids": [1]}, "must list 2 ids"),
        ({"hash_ids": [1, -2]}, "whole numbers"),
        ({"hash_ids": [1, True]}, "whole numbers"),
        ({"hash_ids": None}, "must list"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = write_mooncake(tmp_path / "t.jsonl", [row(0, [1, 2]), {**row(1, [1, 2]), **change}])
    with pytest.raises(ConfigError, match=f"line 2: .*{sentence}"):
        load_trace(path)


@pytest.mark.parametrize("text", ["", "\n", "[]", "what", "TIMESTAMP,ContextTokens\n1,2", "\0"])
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_trace(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_trace(tmp_path / "none")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"timestamp": ' + "9" * 5000 + "}"])
def test_json_that_python_will_not_read_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t"
    path.write_text(json.dumps(row(0, [1])) + "\n" + line + "\n")
    with pytest.raises(ConfigError, match="line 2: it is neither JSON"):
        load_trace(path)


def test_a_damaged_compressed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    whole = bytearray(gzip.compress(b"".join(b"%d" % i for i in range(20_000))))
    whole[200:260] = bytes(each ^ 0x5A for each in whole[200:260])
    path.write_bytes(whole)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_trace(path)


def test_invented_traffic_shares_what_it_should() -> None:
    trace = shared_prefixes(
        num_requests=300,
        rate=10.0,
        num_groups=3,
        prefix_tokens=2048,
        own_tokens=100,
        output_tokens=20,
    )
    assert trace.ideal_hit_tokens() == (300 - 3) * 2048
    assert 20 < trace.duration_s < 40
    assert trace.at_rate(2.0).duration_s == trace.duration_s / 2

    burst = fan_outs(
        num_prompts=16, num_siblings=8, shared_tokens=4096, own_tokens=64, output_tokens=8
    )
    assert burst.ideal_hit_tokens() == 16 * 7 * 4096
    assert burst.num_prompt_tokens == 128 * 4160


def test_a_turn_of_a_conversation_holds_all_that_was_said() -> None:
    talks = conversations(
        num_sessions=50,
        rate=1.0,
        num_turns=4,
        system_tokens=1024,
        turn_tokens=600,
        output_tokens=300,
        think_s=20.0,
    )
    arrivals = [each.arrival_s for each in talks.requests]
    assert arrivals == sorted(arrivals)
    assert len({each.grains[:2] for each in talks.requests}) == 1
    assert talks.ideal_hit_tokens() > 0.5 * talks.num_prompt_tokens


def test_a_written_trace_is_the_one_that_is_read(tmp_path: Path) -> None:
    trace = shared_prefixes(
        num_requests=50,
        rate=10.0,
        num_groups=3,
        prefix_tokens=1024,
        own_tokens=100,
        output_tokens=20,
    )
    write_trace(trace, tmp_path / "t.jsonl.gz")
    read = load_trace(tmp_path / "t.jsonl.gz")
    start_s = round(trace.requests[0].arrival_s, 3)
    assert [each.arrival_s for each in read.requests] == pytest.approx(
        [each.arrival_s - start_s for each in trace.requests], abs=1e-3
    )
    assert read.num_prompt_tokens == trace.num_prompt_tokens
    assert read.ideal_hit_tokens() == trace.ideal_hit_tokens() == 47 * 1024
