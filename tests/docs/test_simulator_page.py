"""docs/simulator.md: its cluster file and its Python are taken as they stand."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from penstock.cli.app import run
from tests.docs.pages import ROOT, Block, blocks

NUM_REQUESTS = 10


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The beginning of the shipped one."""
    path = tmp_path / "trace.jsonl"
    with gzip.open(ROOT / "simulator" / "conversations.jsonl.gz", "rt") as file:
        path.write_text("".join(next(file) for _ in range(NUM_REQUESTS)))
    return path


def block_with(text: str) -> Block:
    [found] = [each for each in blocks() if each.page == "docs/simulator.md" and text in each.text]
    return found


@pytest.mark.slow
def test_the_python_runs(trace: Path) -> None:
    names: dict[str, Any] = {"path": trace}
    exec(compile(block_with("from simulator").text, "docs/simulator.md", "exec"), names)
    assert names["report"].num_finished == len(names["samples"].ttft_s) == NUM_REQUESTS


def test_the_cluster_file_is_one(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(block_with("num_prefill: 2").text)
    with pytest.raises(SystemExit) as ended:
        run(["simulate", "--cluster", str(file), "--trace", str(trace)])
    told = capsys.readouterr()
    assert not ended.value.code, told.err
    assert "2+4" in told.out
