"""What it costs to sample a batch, beside torch row by row and one reading of the logits:
`python -m bench.sampling [--rows 64] [--vocab 16384] [--context 512] [--threads 1]`.

Each case is timed by turns with what it is compared with; the median of seven rounds.
"""

import argparse
from dataclasses import replace
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from bench.attention import in_turns
from bench.machine import describe
from cluster.types import ComputeRequest, GenerationParams, SamplingParams
from engine.drawing import Draw, draw_plainly
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
    forms = {"chosen": choose_drawing(torch.device("cpu")), "torch": draw_plainly}
    table = Table(
        "requests", "ms", "torch, row by row, ms", "x", title=f"{given.rows} rows", box=None
    )
    batches = {name: [params] * given.rows for name, params in KINDS.items()}
    kinds = list(KINDS.values())
    batches["all of these, mixed"] = [kinds[row % len(kinds)] for row in range(given.rows)]
    for name, params in batches.items():
        draws = [draw(one, row, given) for row, one in enumerate(params)]
        runs = {form: partial(sample, logits, draws, drawing) for form, drawing in forms.items()}
        own, plain = in_turns(runs, NUM_ROUNDS).values()
        table.add_row(name, f"{1e3 * own:.2f}", f"{1e3 * plain:.2f}", f"{plain / own:.1f}")
    [read] = in_turns({"read": logits.max}, NUM_ROUNDS).values()
    console = Console()
    console.print(describe())
    console.print(table)
    console.print(f"Reading these logits once: {1e3 * read:.2f} ms.")


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


if __name__ == "__main__":
    main()
