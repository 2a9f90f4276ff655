"""First forwards before anyone waits: libraries initialise, and the cost models learn.

Runs on the pool's blocks while nobody else uses them, and leaves nothing findable.
"""

import time

from cluster.types import ComputeRequest, GenerationParams, KvLayout, SamplingParams
from engine.batch import Batch, BatchRow
from engine.sequence import Sequence
from engine.thread import ForwardEngine

_NUM_STEPS = 4
_LONGEST = 128


def warm_up(engine: ForwardEngine, layout: KvLayout, max_tokens: int) -> list[tuple[Batch, float]]:
    """Computes a few prompts and single tokens, twice; the second round's batches with their
    seconds. Several sizes, so that fixed and per-token costs can be told apart."""
    longest = min(max_tokens, _LONGEST, layout.num_blocks * layout.block_size - _NUM_STEPS - 1)
    sizes = sorted({max(1, longest // share) for share in (8, 3, 1)})
    _round(engine, layout, sizes)
    return _round(engine, layout, sizes)


def _round(engine: ForwardEngine, layout: KvLayout, sizes: list[int]) -> list[tuple[Batch, float]]:
    timed: list[tuple[Batch, float]] = []
    for num_tokens in sizes:
        sequence = _sequence(num_tokens, layout)
        timed.append(_run(engine, sequence, num_tokens))
        timed += [_run(engine, sequence, 1) for _ in range(_NUM_STEPS)]
    return timed


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
    sequence.has_begun = True
    return batch, seconds
