"""Weights that are kept in fewer bits change what is computed by no more than their rounding must.

Of bfloat16 a weight is off by 2^-9 of itself at the most, of int8 by 1/254 of its row's largest.
"""

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cluster.compiled import CompileError
from cluster.errors import ConfigError
from cluster.measurements import Measurements
from cluster.types import BlockId, SamplingParams
from engine.batch import Batch, BatchRow
from engine.checkpoint import load_spec
from engine.config import EngineConfig, Weights
from engine.cpu_kernels import native_products
from engine.engine import Engine
from engine.layers import linear, narrow
from engine.layers.linear import native_serves
from engine.layers.narrow import narrowed
from tests.checkpoints import FAMILIES, VOCAB_SIZE, checkpoint, reference_logits
from tests.engine.driver import make_sequence

# How far log-probabilities may be from float32's: the root of the mean square, as a share of the
# deviation among them.
BOUNDS: dict[Weights, float] = {"bfloat16": 0.02, "int8": 0.06}
PROMPT = [2 + (i * i + 7 * i) % (VOCAB_SIZE - 2) for i in range(60)]

torch.set_num_threads(1)


def make_engine(family: str, weights: Weights, measurements: Measurements | None = None) -> Engine:
    path = checkpoint(family)
    config = EngineConfig(
        checkpoint=path, num_blocks=8, block_size=16, num_threads=1, weights=weights
    )
    return Engine(load_spec(path), config, measurements=measurements)


def logprobs(engine: Engine) -> Tensor:
    """[len(PROMPT) - 1, VOCAB_SIZE] of the tokens after the first."""
    sampling = SamplingParams(seed=0, temperature=0.0, num_prompt_logprobs=VOCAB_SIZE)
    sequence = make_sequence(PROMPT, sampling)
    sequence.block_table = [BlockId(block) for block in range(8)]
    row = BatchRow(sequence=sequence, start=0, num_new=len(PROMPT), want_prompt_logprobs=True)
    [result] = engine.forward(Batch(rows=(row,)))
    found = torch.empty(len(PROMPT) - 1, VOCAB_SIZE)
    for place, of_token in zip(found, result.prompt_logprobs, strict=True):
        tokens, values = zip(*of_token.top, strict=True)
        place[list(tokens)] = torch.tensor(values)
    return found


@pytest.mark.parametrize("weights", BOUNDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_stay_near(family: str, weights: Weights) -> None:
    exact = reference_logits(checkpoint(family), PROMPT)[:-1].log_softmax(-1)
    off = (logprobs(make_engine(family, weights)) - exact).square().mean().sqrt() / exact.std()
    print(f"{family}, {weights}: off by {off:.5f} of the deviation")
    assert 1e-5 < off < BOUNDS[weights]


def test_bytes_are_within_half_a_step() -> None:
    weight = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    weight[7], weight[8, 1:] = 0, 0
    wide = narrowed(weight, "int8").widened()
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((wide - weight).abs() <= step * 0.5001).all()
    assert torch.equal(wide[7:9], weight[7:9])


@pytest.mark.parametrize("weights", BOUNDS)
def test_without_a_kernel_the_same_numbers_serve(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise CompileError("no C++ compiler")

    measurements = Measurements()
    by_kernel = logprobs(make_engine("llama", weights, measurements))
    assert measurements.choices["weights"] == weights
    monkeypatch.setattr(native_products, "library", missing)
    native_products._kernel.cache_clear()
    for module in (linear, narrow):
        monkeypatch.setattr(module, "native_serves", native_serves.__wrapped__)
    by_torch = logprobs(make_engine("llama", weights, measurements))
    assert "for want of a kernel" in measurements.choices["weights"]
    torch.testing.assert_close(by_kernel, by_torch, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("other", [{"device": "cuda"}, {"dtype": "bfloat16"}], ids=str)
def test_they_are_for_a_cpu_in_float32(other: dict[str, str]) -> None:
    make = functools.partial(
        EngineConfig, checkpoint=Path(), num_blocks=1, block_size=1, num_threads=1, weights="int8"
    )
    with pytest.raises(ConfigError, match="'weights' are 'int8': narrower ones are for a CPU"):
        make(**other)
