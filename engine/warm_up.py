"""First forwards before anyone waits: libraries initialise, and the cost models learn.

Runs on the pool's blocks while nobody else uses them, and leaves nothing findable.
"""

import time

from cluster.types import ComputeRequest, GenerationParams, KvLayout, SamplingParams
from engine.batch import Batch, BatchRow
from engine.sequence import Sequence
from engine.thread import ForwardEngine

_NUM_STEPS = 4


def warm_up(engine: ForwardEngine, layout: KvLayout, max_tokens: int) -> list[tuple[Batch, float]]:
    """Computes a few prompts and single tokens; each batch with its seconds, fastest last."""
    num_tokens = min(max_tokens, 128, layout.num_blocks * layout.block_size - _NUM_STEPS - 1)
    timed: list[tuple[Batch, float]] = []
    for prompt_tokens in (16, num_tokens, num_tokens):
        sequence = _sequence(prompt_tokens, layout)
        timed.append(_run(engine, sequence, prompt_tokens))
        timed += [_run(engine, sequence, 1) for _ in range(_NUM_STEPS)]
    return timed[1 + _NUM_STEPS :]  # the first round initialised things


def _sequence(num_tokens: int, layout: KvLayout) -> Sequence:
    params = GenerationParams(sampling=SamplingParams(seed=0, temperature=0.0), max_tokens=1)
    request = ComputeRequest(
        request_id="warm-up", prompt_ids=[0] * num_tokens, params=params, hash_key=b""
    )
    sequence = Sequence(request)
    num_blocks = -(-(num_tokens + _NUM_STEPS + 1) // layout.block_size)
    sequence.block_table = list(range(num_blocks))  # type: ignore[arg-type]
    return sequence


def _run(engine: ForwardEngine, sequence: Sequence, num_new: int) -> tuple[Batch, float]:
    row = BatchRow(sequence=sequence, start=sequence.num_computed, num_new=num_new, choices=(0,))
    batch = Batch(rows=(row,))
    started = time.perf_counter()
    result = engine.forward(batch)[0]
    seconds = time.perf_counter() - started
    sequence.num_computed = row.stop
    sequence.output_ids.append(result.tokens[0].token_id)
    return batch, seconds
