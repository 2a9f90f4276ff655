"""The grid of unequal ends: block sizes, tensor parallelism and dtypes of both, by memory in one
process, and by gloo from processes that each hold some ranks of the source."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from cluster.types import KvLayout
from kv_transfer.memory_transport import MemoryNetwork
from tests.kv_transfer.shard_rig import (
    LocalWriters,
    OpenPool,
    Prompt,
    Writers,
    check,
    hand_over,
    open_door,
    open_in,
    worker_of,
    writer_process,
)

MODELS = {
    "gqa4": KvLayout(num_layers=2, num_blocks=64, block_size=8, num_kv_heads=4, head_dim=16),
    "gqa2": KvLayout(num_layers=2, num_blocks=64, block_size=8, num_kv_heads=2, head_dim=16),
    "mla": KvLayout(
        num_layers=2, num_blocks=64, block_size=8, num_kv_heads=1, head_dim=48, num_planes=1
    ),
    "windows": KvLayout(
        num_layers=3,
        num_blocks=64,
        block_size=8,
        num_kv_heads=4,
        head_dim=16,
        windows=(40, None, 9),
    ),
}
BLOCK_SIZES = list(product((8, 16, 32), repeat=2))
DEGREES = list(product((1, 2, 4), repeat=2))
DTYPES = [
    ("float32", "float32", None),
    ("float32", "float32", "bfloat16"),
    ("float32", "float32", "int8"),
    ("float32", "bfloat16", "bfloat16"),
    ("bfloat16", "float32", None),
    ("bfloat16", "bfloat16", "int8"),
    ("float16", "float32", None),
]
PROMPT = Prompt(37, 190)

Ends = tuple[str, tuple[int, int], tuple[int, int], tuple[str, str, str | None]]


async def check_ends(writers: list[Writers], open_pool: OpenPool, ends: Ends) -> None:
    model, sizes, degrees, (here, there, wire_dtype) = ends
    layouts = [
        replace(MODELS[model], block_size=size, dtype=dtype)
        for size, dtype in zip(sizes, (here, there), strict=True)
    ]
    source, destination = (
        worker_of(layout, degree, PROMPT) for layout, degree in zip(layouts, degrees, strict=True)
    )
    contents = await hand_over(writers, open_pool, source, destination, PROMPT, wire_dtype)
    assert len(contents) == degrees[1]
    check(contents, source, PROMPT, wire_dtype)


@pytest.fixture
def two_processes(tmp_path: Path) -> Iterator[list[Writers]]:
    with ExitStack() as stack:
        yield [stack.enter_context(writer_process("gloo", tmp_path)) for _ in range(2)]


@pytest.fixture
def four_processes(tmp_path: Path) -> Iterator[list[Writers]]:
    with ExitStack() as stack:
        yield [stack.enter_context(writer_process("gloo", tmp_path)) for _ in range(4)]


@pytest.mark.slow
async def test_a_few_ends_by_gloo_between_processes(
    two_processes: list[Writers], tmp_path: Path
) -> None:
    covering: list[Ends] = [
        ("gqa4", (8, 32), (2, 1), DTYPES[0]),
        ("gqa2", (32, 16), (1, 4), DTYPES[2]),
        ("mla", (16, 8), (2, 2), DTYPES[4]),
        ("windows", (16, 32), (4, 2), DTYPES[3]),
    ]
    for ends in covering:
        await check_ends(two_processes, partial(open_door, "gloo", tmp_path), ends)


@pytest.mark.prove
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("model", MODELS)
async def test_every_end_against_every_other(model: str) -> None:
    for sizes, degrees, dtypes in product(BLOCK_SIZES, DEGREES, DTYPES):
        open_pool = partial(open_in, MemoryNetwork())
        await check_ends([LocalWriters(open_pool)], open_pool, (model, sizes, degrees, dtypes))
    print(f"{model}: {len(BLOCK_SIZES) * len(DEGREES) * len(DTYPES)} pairs of ends")


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sizes", BLOCK_SIZES, ids=str)
async def test_every_parallelism_by_gloo_from_a_process_a_rank(
    four_processes: list[Writers], tmp_path: Path, sizes: tuple[int, int]
) -> None:
    open_pool = partial(open_door, "gloo", tmp_path)
    for number, (model, degrees) in enumerate(product(MODELS, DEGREES)):
        ends = (model, sizes, degrees, DTYPES[number % len(DTYPES)])
        await check_ends(four_processes[: degrees[0]], open_pool, ends)
