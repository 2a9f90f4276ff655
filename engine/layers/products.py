"""Picks the products that each matrix of a model is stored for: the fastest on this machine.

What is concluded is a pure function of seconds, which are measured or remembered.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

from cluster.measurements import Measurements
from engine.layers.linear import CLASS_ROWS, NUM_CLASSES, Choice, Product, products_for, uniform
from engine.layers.product_timing import WORKING_BYTES, time_shape

WORTH = 1.1  # a second copy is, where a step of some size is so many times slower without


class Shape(NamedTuple):
    """Holds the extent of a matrix."""

    num_outputs: int
    num_inputs: int
    is_kept: bool = False  # in the checkpoint's order in any case: that copy costs nothing

    def __str__(self) -> str:
        return f"{self.num_inputs}x{self.num_outputs}"


Seconds = Mapping[Product, Sequence[float]]  # by class of rows


def choose_products(
    shapes: Mapping[Shape, int],
    measurements: Measurements,
    *,
    dtype: torch.dtype,
    device: torch.device,
    may_keep_two: bool,
) -> dict[Shape, Choice]:
    """Chooses for a model that has so many matrices of each shape. Times what is not remembered.
    `may_keep_two` copies of each matrix."""
    candidates = tuple(products_for(dtype, device))
    if len(candidates) == 1:
        return {shape: uniform(candidates[0]) for shape in shapes}
    sizes = (num * shape.num_outputs * shape.num_inputs for shape, num in shapes.items())
    model_bytes = min(sum(sizes) * dtype.itemsize, WORKING_BYTES)
    name_of = partial(_name, candidates=candidates, dtype=dtype, model_bytes=model_bytes)
    seconds: dict[Shape, Seconds] = {}
    for shape in shapes:
        size = shape.num_outputs, shape.num_inputs
        time = partial(time_shape, *size, candidates, dtype=dtype, model_bytes=model_bytes)
        take = measurements.take(name_of(shape), time)
        # A second copy is not for what other load may have made up.
        may_keep_two = may_keep_two and take.is_final
        seconds[shape] = {each: take.seconds[each] for each in candidates}
    chosen = fastest(seconds, shapes, may_keep_two=may_keep_two)
    for shape, choice in chosen.items():
        measurements.choices[f"product {shape}"] = told(choice)
    return chosen


def _name(
    shape: Shape, *, candidates: Sequence[Product], dtype: torch.dtype, model_bytes: int
) -> str:
    """All that its seconds depend on, beside the processor."""
    return (
        f"{'/'.join(candidates)} {shape} {str(dtype).removeprefix('torch.')},"
        f" {torch.get_num_threads()} threads, {model_bytes >> 20} MiB in turn,"
        f" torch {torch.__version__}"
    )


def fastest(
    seconds: Mapping[Shape, Seconds], shapes: Mapping[Shape, int], *, may_keep_two: bool
) -> dict[Shape, Choice]:
    """One copy of every matrix, or two of some where that is worth it for a whole step."""
    one = {shape: _fewest(times, shape, most=1) for shape, times in seconds.items()}
    if not may_keep_two:
        return one
    two = {shape: _fewest(times, shape, most=2) for shape, times in seconds.items()}
    is_worth_it = any(
        _step_s(one, seconds, shapes, rows) > WORTH * _step_s(two, seconds, shapes, rows)
        for rows in range(NUM_CLASSES)
    )
    return two if is_worth_it else one


def _step_s(
    choices: Mapping[Shape, Choice],
    seconds: Mapping[Shape, Seconds],
    shapes: Mapping[Shape, int],
    rows: int,
) -> float:
    """All products of a step with this class of rows; of the last class that was timed."""
    total = 0.0
    for shape, choice in choices.items():
        times = seconds[shape][choice[rows]]
        total += shapes[shape] * times[min(rows, len(times) - 1)]
    return total


def _fewest(seconds: Seconds, shape: Shape, *, most: int) -> Choice:
    """The fewest copies with which no class of rows is `WORTH` times slower than the best
    product for it, and of these the fastest on the whole."""
    num_timed = min(map(len, seconds.values()))
    best = [min(row[case] for row in seconds.values()) for case in range(num_timed)]

    def rank(kept: Collection[Product]) -> tuple[bool, int, float]:
        cases = range(num_timed)
        slower = [min(seconds[each][case] for each in kept) / best[case] for case in cases]
        num_copies = sum(not (shape.is_kept and each is Product.STORED) for each in kept)
        return max(slower) > WORTH, num_copies, sum(slower)

    sizes = range(1, most + 1)
    options = [kept for size in sizes for kept in itertools.combinations(seconds, size)]
    kept = min(options, key=rank)
    chosen = [min(kept, key=lambda each: seconds[each][case]) for case in range(num_timed)]
    return tuple(chosen + [chosen[-1]] * (NUM_CLASSES - num_timed))


def told(choice: Choice) -> str:
    """'transposed', or 'transposed, packed from 2 rows'."""
    first_rows = (1, *(rows + 1 for rows in CLASS_ROWS))
    parts = [str(choice[0])]
    for before, product, rows in zip(choice, choice[1:], first_rows[1:], strict=False):
        if product is not before:
            parts.append(f"{product} from {rows} rows")
    return ", ".join(parts)
