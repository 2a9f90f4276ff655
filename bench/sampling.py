"""What it costs to sample a batch, beside torch row by row and one reading of the logits:
`python -m bench.sampling [--rows 64] [--vocab 16384] [--context 512] [--threads 1]`.

Each case is timed by turns with what it is compared with; the median of seven rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from bench.machine import describe
from cluster.types import ComputeRequest, GenerationParams, SamplingParams
from engine.drawing import Draw, Drawing, draw_plainly
from engine.drawing_choice import choose_drawing
from engine.sampling import sample
from engine.sequence import Sequence

NUM_ROUNDS = 7
NUM_OUTPUT = 32  # tokens that penalties count
PLAIN = SamplingParams(seed=0, temperature=0.8)
KINDS: dict[str, SamplingParams] = {
    "greedy": replace(PLAIN, temperature=0.0),
    "temperature": PLAIN,
    "top-p 0.9": replace(PLAIN, top_p=0.9),
    "top-k 50": replace(PLAIN, top_k=50),
    "min-p 0.05": replace(PLAIN, min_p=0.05),
    "three penalties": replace(
        PLAIN, repetition_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1
    ),
    "5 logprobs": replace(PLAIN, num_logprobs=5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 64), ("vocab", 16_384), ("context", 512), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(given.rows, given.vocab, generator=generator) * 3
    table = Table(
        "requests", "ms", "torch, row by row, ms", "x", title=f"{given.rows} rows", box=None
    )
    batches = {name: [params] * given.rows for name, params in KINDS.items()}
    kinds = list(KINDS.values())
    batches["all of these, mixed"] = [kinds[row % len(kinds)] for row in range(given.rows)]
    for name, params in batches.items():
        draws = [draw(one, row, given) for row, one in enumerate(params)]
        own, plain = by_turns(partial(sample, logits, draws))
        table.add_row(name, f"{own:.2f}", f"{plain:.2f}", f"{plain / own:.1f}")
    read = statistics.median(timed(lambda: logits.max()) for _ in range(NUM_ROUNDS))
    console = Console()
    console.print(describe())
    console.print(table)
    console.print(f"Reading these logits once: {read:.2f} ms.")


def draw(params: SamplingParams, row: int, given: argparse.Namespace) -> Draw:
    prompt = [(row + place) % given.vocab for place in range(given.context)]
    request = ComputeRequest(
        request_id=str(row),
        prompt_ids=prompt,
        params=GenerationParams(sampling=replace(params, seed=row), max_tokens=NUM_OUTPUT + 1),
        hash_key=bytes(32),
        emitted=(tuple(prompt[:NUM_OUTPUT]),),
    )
    return Draw(Sequence(request), given.context + NUM_OUTPUT, (0,))


def by_turns(run: Callable[[Drawing], object]) -> tuple[float, float]:
    """Milliseconds with the form that is chosen here, and with torch's."""
    chosen = choose_drawing(torch.device("cpu"))
    rounds = [
        [timed(partial(run, form)) for form in (chosen, draw_plainly)] for _ in range(NUM_ROUNDS)
    ]
    own, plain = map(statistics.median, zip(*rounds, strict=True))
    return own, plain


def timed(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return (time.perf_counter() - begun) * 1000


if __name__ == "__main__":
    main()
