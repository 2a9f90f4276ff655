"""Times the products on one shape: matrices out of cache as far as the model is, all products in
turns, the least times counted."""

import itertools
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cluster.measurements import Timings
from engine.layers.linear import CLASS_ROWS, Copy, Product, make_copy

SHAPE_S = 0.3  # for a shape of a large model; what is not reached is computed as what was
_LEAST_SHARE = 0.2  # of it, for one of the smallest
TIMED_ROWS = (*CLASS_ROWS, 4 * CLASS_ROWS[-1])  # of each class the most; of the last, some
WORKING_BYTES = 64 << 20  # of matrices in turn: more than a core's share of any cache
_PIECE_BYTES = 16 << 20  # of a matrix: a larger one is timed by some of its outputs
_MAX_COPIES = 16
_MIN_ROUNDS, _MAX_ROUNDS = 3, 15


def time_shape(
    num_outputs: int,
    num_inputs: int,
    products: Sequence[Product],
    *,
    dtype: torch.dtype,
    model_bytes: int,
) -> Timings:
    """Times each product: seconds with as many rows as `TIMED_ROWS` says, or with the first of
    these where time ran out. With as many threads as torch is set to."""
    row_bytes = num_inputs * dtype.itemsize
    num_timed = min(num_outputs, max(1, _PIECE_BYTES // row_bytes))
    working_bytes = min(model_bytes, WORKING_BYTES)
    num_copies = working_bytes // (num_timed * row_bytes)
    weights = [
        torch.ones(num_timed, num_inputs, dtype=dtype)
        for _ in range(max(1, min(num_copies, _MAX_COPIES)))
    ]
    copies = {product: [make_copy(product, each) for each in weights] for product in products}
    inputs = [torch.ones(rows, num_inputs, dtype=dtype) for rows in TIMED_ROWS]
    limit_s = SHAPE_S * max(_LEAST_SHARE, working_bytes / WORKING_BYTES)
    times = time_products(copies, inputs, limit_s)
    return {
        product: [seconds * num_outputs / num_timed for seconds in row]
        for product, row in times.items()
    }


@torch.inference_mode()
def time_products(
    copies: Mapping[Product, Sequence[Copy]], inputs: Sequence[Tensor], limit_s: float
) -> dict[Product, list[float]]:
    """The first rounds may take twice as long as all of them should."""
    until = time.perf_counter() + limit_s
    least: dict[Product, list[float]] = {product: [] for product in copies}
    turn = itertools.count()
    for number in range(_MAX_ROUNDS):
        limit = until + limit_s if 0 < number < _MIN_ROUNDS else until
        for case, x in enumerate(inputs):
            if time.perf_counter() > limit and (number, case) != (0, 0):
                return least
            for _ in range(2 if number == 0 else 1):  # the first call of a kind is slow
                for product, mine in copies.items():
                    seconds = _seconds(mine[next(turn) % len(mine)], x)
                    _keep_least(least[product], case, seconds)
    return least


def _seconds(copy: Copy, x: Tensor) -> float:
    began = time.perf_counter()
    copy.of(x)
    return time.perf_counter() - began


def _keep_least(least: list[float], case: int, seconds: float) -> None:
    if case == len(least):
        least.append(seconds)
    else:
        least[case] = min(least[case], seconds)
