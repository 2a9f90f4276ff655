"""What KV that was narrowed on its way does to the next token's probabilities: no more than
rounding must.

A number that was rounded is off by half a step at the most: of int8, 1/254 of its row's largest;
of bfloat16, 2^-8 of itself at the most. Independent errors, uniform within such steps, give each
log-probability a spread, to first order whatever the model. It is measured with drawn errors.
Rounding, which draws none, must stay within six such spreads of the largest.
"""

import numpy as np
import pytest
import torch

from cluster.types import BlockId, SamplingParams
from engine.batch import Batch, BatchRow
from engine.checkpoint import load_spec
from engine.config import EngineConfig
from engine.engine import Engine
from engine.sequence import Sequence
from kv_transfer.conversion import Conversion
from tests.checkpoints import VOCAB_SIZE, checkpoint
from tests.engine.driver import make_sequence

torch.set_num_threads(1)

PROMPT = [2 + (i * i + 7 * i) % (VOCAB_SIZE - 2) for i in range(120)]
NUM_DRAWS = 12
NUM_BLOCKS, BLOCK_SIZE = 8, 16


class Step:
    """One model with the prompt's KV, all but the last token's; a step over a changed copy."""

    def __init__(self, family: str) -> None:
        spec = load_spec(checkpoint(family))
        config = EngineConfig(
            checkpoint=checkpoint(family),
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            num_threads=1,
        )
        self.row = spec.head_dim
        layout = spec.kv_layout(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)
        self.pool = np.zeros(layout.pool_bytes // 4, dtype=np.float32)
        self._engine = Engine(spec, config, self.pool.data.cast("B"))
        sampling = SamplingParams(seed=0, temperature=0.0, num_logprobs=VOCAB_SIZE)
        self._sequence: Sequence = make_sequence(PROMPT, sampling)
        self._sequence.block_table = [BlockId(block) for block in range(NUM_BLOCKS)]
        self._forward(0, len(PROMPT) - 1)
        self.exact = self.pool.copy()

    def logprobs(self, kv: np.ndarray) -> np.ndarray:
        """Of all tokens that may come next, by token."""
        self.pool[:] = kv
        [drawn] = self._forward(len(PROMPT) - 1, 1)[0].tokens
        assert drawn.logprob is not None
        return np.array([value for _, value in sorted(drawn.logprob.top)])

    def _forward(self, start: int, num_new: int) -> list:  # type: ignore[type-arg]
        choices = (0,) if start else ()
        row = BatchRow(sequence=self._sequence, start=start, num_new=num_new, choices=choices)
        return self._engine.forward(Batch(rows=(row,)))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("wire_dtype", ["bfloat16", "int8"])
def test_rounding_moves_the_next_token_no_more_than_drawn_errors_of_its_size(
    family: str, wire_dtype: str
) -> None:
    step = Step(family)
    conversion = Conversion(
        source_dtype="float32", wire_dtype=wire_dtype, destination_dtype="float32", row=step.row
    )
    narrowed = conversion.decode(conversion.encode(step.exact.view(np.uint8))).view(np.float32)
    rows = np.abs(step.exact).reshape(-1, step.row)
    largest = np.repeat(rows.max(axis=1), step.row)
    half_steps = largest / 254 if wire_dtype == "int8" else np.abs(step.exact) / 256
    assert (np.abs(narrowed - step.exact) <= half_steps * 1.001).all()

    right = step.logprobs(step.exact)
    assert len(right) == VOCAB_SIZE
    rng = np.random.default_rng(0)
    drawn = [rng.uniform(-1, 1, len(half_steps)) * half_steps for _ in range(NUM_DRAWS)]
    off = np.array([step.logprobs(step.exact + errors) - right for errors in drawn])
    spread = np.sqrt((off**2).mean(axis=0)).max()
    moved = np.abs(step.logprobs(narrowed) - right).max()
    print(f"{family}, {wire_dtype}: moved by {moved:.5f}, spread {spread:.5f}")
    assert 0 < moved <= 6 * spread
