"""All products of a step of the 54 M Llama, each way of them beside what the machine can read.

    python -m bench.products [--threads 2] [--rounds 15]

All take turns in every round; figures are medians. `read` sums the same matrices in float32 once.
The head is one of the matrices, the embedding is not.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench import machine
from bench.attention import in_turns
from bench.random_llama import SHAPE_54M, LlamaShape
from engine.layers.linear import CLASS_ROWS, Copy, Linear, make_copy, products_for, serving_all
from engine.layers.narrow import make_narrow

ROWS = (*CLASS_ROWS, 512)


def matrices(shape: LlamaShape) -> list[Tensor]:
    """[num_outputs, num_inputs] in the order of a step."""
    dim = shape.hidden_size // shape.num_heads
    qkv = (shape.num_heads + 2 * shape.num_kv_heads) * dim
    hidden, inner = shape.hidden_size, shape.intermediate_size
    layer = [(qkv, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner)]
    sizes = [*layer * shape.num_layers, (shape.vocab_size, hidden)]
    return [torch.randn(size) / size[1] ** 0.5 for size in sizes]


def ways(weights: list[Tensor]) -> dict[str, list[Linear]]:
    cpu = torch.device("cpu")
    made: dict[str, Callable[[Tensor], Linear]] = {
        str(product): lambda weight, product=product: _all(make_copy(product, weight))  # type: ignore[misc]
        for product in products_for(torch.float32, cpu)
    }
    made["bfloat16"] = lambda weight: make_narrow(weight, None, "bfloat16")
    made["int8"] = lambda weight: make_narrow(weight, None, "int8")
    return {name: [make(weight) for weight in weights] for name, make in made.items()}


def _all(copy: Copy) -> Linear:
    return serving_all(copy)


def multiply(linears: list[Linear], inputs: dict[int, Tensor], weights: list[Tensor]) -> None:
    for linear, weight in zip(linears, weights, strict=True):
        linear(inputs[weight.shape[1]])


def read(weights: list[Tensor]) -> None:
    for weight in weights:
        weight.sum()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weights = matrices(SHAPE_54M)
    num_bytes = sum(weight.nbytes for weight in weights)
    linears = ways(weights)
    print(machine.describe())
    print(f"{args.threads} threads, {num_bytes / 1e6:.0f} MB of matrices; ms (share of read)")
    for rows in args.rows:
        inputs = {size: torch.randn(rows, size) for size in {w.shape[1] for w in weights}}
        runs = {name: partial(multiply, each, inputs, weights) for name, each in linears.items()}
        rounds = args.rounds if rows <= CLASS_ROWS[-1] else min(args.rounds, 3)
        seconds = in_turns({**runs, "read": partial(read, weights)}, rounds)
        told = (f"{n} {s * 1e3:.2f} ({seconds['read'] / s:.2f})" for n, s in seconds.items())
        gflops = 2 * rows * num_bytes / 4 / seconds["native"] / 1e9
        print(f"{rows:>4} rows: {', '.join(told)}; native {gflops:.0f} GFLOP/s", flush=True)
    print(f"load after the run {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
