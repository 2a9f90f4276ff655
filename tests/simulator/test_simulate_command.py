"""`penstock simulate` as people and scripts meet it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.cli.app import run

WORKLOAD = (
    "shared_prefixes: {num_requests: 60, rate: 6, num_groups: 4, prefix_tokens: 1024,"
    " own_tokens: 300, output_tokens: 20}"
)
FAULTS = (
    "crash: {worker: decode-0, at_s: 2, for_s: 3}",
    "freeze: {worker: prefill-0, at_s: 4, for_s: 1}",
    "slow: {worker: decode-1, at_s: 1, for_s: 5, factor: 3}",
    "lost_events: {worker: decode-1, at_s: 3, for_s: 1}",
    "partition: {worker: decode-0, at_s: 7, for_s: 1}",
    "random: {num: 3, longest_s: 2}",
)


def simulate(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run(["simulate", "--workload", WORKLOAD, *arguments])
    return int(ended.value.code or 0)


def test_a_table_has_a_column_for_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("--workers", "1+1,1+2", "--rule", "priced") == 0
    captured = capsys.readouterr()
    head, *rows = captured.out.splitlines()
    assert "1+1 priced" in head
    assert "1+2 priced" in head
    labels = [row[:40] for row in rows]
    for label in (
        *("TTFT s", "ITL ms", "good: TTFT <= 2 s", "hit tokens", "KV fetched", "cost"),
        *("prefill busy %", "decode batch, mean", "decode KV in use %, mean most"),
    ):
        assert any(each.startswith(label) for each in labels), label
    assert "60 requests" in captured.err


def test_targets_decide_what_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for target in ("0.0001", "1000"):
        assert simulate("--workers", "0+2", "--ttft", target, "--itl", "1000", "--json") == 0
        [report] = json.loads(capsys.readouterr().out)
        found.append((report["num_good"], report["num_finished"]))
    assert found == [(0, 60), (60, 60)]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    def outputs(hash_seed: str) -> tuple[bytes, bytes]:
        plot = tmp_path / f"{hash_seed}.png"
        command = [sys.executable, "-m", "penstock", "simulate", "--workload", WORKLOAD]
        command += ["--workers", "1+2", "--seed", "5", "--json", "--plot", str(plot)]
        for fault in FAULTS:
            command += ["--fault", fault]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        ended = subprocess.run(command, env=environment, capture_output=True, check=True)
        return ended.stdout, plot.read_bytes()

    first, again = outputs("1"), outputs("2")
    assert first == again
    [report] = json.loads(first[0])
    assert report["num_moved"] > 0
    assert report["num_finished"] == 60


def test_a_cluster_is_read_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "num_prefill: 0\n"
        "num_decode: 1\n"
        "decode:\n"
        "  prefill_cost: {c0: 0.01, c1: 1.0e-4}\n"
        "  decode_cost: {d0: 0.02}\n"
        "  num_gpus: 1\n"
        "gpu_hour_price: 3600.0\n"
    )
    assert simulate("--cluster", str(file), "--json") == 0
    [report] = json.loads(capsys.readouterr().out)
    assert report["cost"] == pytest.approx(report["duration_s"])
    assert report["itl"]["p50_s"] == pytest.approx(0.02, abs=2e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--workers", "3"), "PREFILL+DECODE"),
        (("--workers", "1+0"), "one decode worker"),
        (("--make", "1t-1gpu"), "choose from 70b-4gpu"),
        (("--rule", "best"), "priced"),
        (("--rule", "priced: {fetch: 1}"), "mayFetch"),
        (("--policy", "nowhere.yaml"), "nowhere.yaml"),
        (("--fault", "flood"), "crash, freeze, slow"),
        (("--fault", "crash: {worker: decode-9, at_s: 1}"), "no worker 'decode-9'"),
        (("--fault", "crash: {at_s: 1}"), "'worker' is missing"),
        (("--fault", "slow: {worker: decode-0, at_s: 1, factor: -2}"), "multiple of its time"),
        (("--fault", "random: {number: 3}"), "did you mean 'num'?"),
        (("--fault", "random: {num: 0}"), "at least 1"),
        (("--fault", "crash: {"), "NAME: {KEY: VALUE}"),
        (("--rule", "[priced]"), "is no rule"),
        (("--rule", "{priced: {}, lmetric: {}}"), "is no rule"),
        (("--rule", "[" * 5000), "NAME: {KEY: VALUE}"),
        (("--trace", "x.csv"), "not both"),
        (("--cluster", "nowhere.yaml"), "cannot be read"),
        (("--plot", "no/such/folder/x.png"), "cannot be written"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(*arguments) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("link: {setup_s: -1}", "link.setup_s"),
        ("link: {bytes_per_s: 0}", "link.bytes_per_s"),
        ("link: {bytes_per_s: -2.0e+9}", "link.bytes_per_s"),
        ("prefill: {prefill_cost: {c0: -1, c1: 0}}", "prefill_cost.c0"),
        ("decode: {decode_cost: {d0: 0.01, d2: -1}}", "decode_cost.d2"),
        ("model: {num_layers: 0}", "model.num_layers"),
        ("model: {dtype: float99}", "choose from"),
        ("gpu_hour_price: -2", "gpu_hour_price"),
        ("decode: {cache_tokens: 99999999999999999999}", "cache_tokens"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(
    line: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(f"num_prefill: 1\nnum_decode: 1\n{line}\n")
    assert simulate("--cluster", str(file)) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("workload", "sentence"),
    [
        ("rivers", "give one of shared_prefixes"),
        ("[bursts]", "is no workload"),
        ("fan_outs: {num_prompts: 2}", "'num_siblings' is missing"),
        ("fan_outs: {prompts: 2}", "did you mean 'num_prompts'?"),
        (WORKLOAD.replace("rate: 6", "rate: 0"), "rate"),
        (WORKLOAD.replace("num_requests: 60", "num_requests: 900000000"), "num_requests"),
    ],
)
def test_a_wrong_workload_is_refused(
    workload: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["simulate", "--workload", workload])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("--help") == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "file", "start"),
    [
        ("figures", "figures.png", b"\x89PNG"),
        ("run.v2", "run.v2.png", b"\x89PNG"),
        ("figures.PNG", "figures.PNG", b"\x89PNG"),
        ("figures.pdf", "figures.pdf", b"%PDF"),
    ],
)
def test_figures_have_the_extension_of_what_they_are(
    given: str, file: str, start: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate("--workers", "1+1", "--plot", str(tmp_path / given)) == 0
    assert (tmp_path / file).read_bytes().startswith(start)
    assert f"The figures are in {tmp_path / file}." in capsys.readouterr().err


def test_figures_that_cannot_be_written_are_refused_before_the_simulation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.png").mkdir()
    for wrong in ("no/figures", "folder"):
        assert simulate("--plot", str(tmp_path / wrong)) == 2
        said = capsys.readouterr().err
        assert "cannot be written" in said
        assert "60 requests" not in said
