"""The kernel equals the textbook, and the bits of a token's output depend on its context alone."""

import ctypes
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.compiled import library
from engine.attention import Query
from engine.cpu_kernels.native_attention import SOURCE, NativeAttention
from engine.cpu_kernels.torch_threads import openmp_entry
from tests.engine.attention_cases import AttentionCase, draw_case, textbook

torch.set_num_threads(1)

# heads, K/V heads, head size: groups of 1 to 32, sizes that vectors divide and others.
SHAPES = [(8, 4, 64), (4, 4, 64), (14, 2, 64), (32, 1, 128), (16, 1, 80), (6, 3, 36), (4, 2, 17)]
SHAPES += [(4, 1, 256), (3, 3, 4), (24, 2, 96)]
# A chunk, tokens alone and a short chunk, about an edge of pieces and far behind it.
CUT = [(100, 50), (0, 1), (300, 1), (255, 3)]


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def attended(case: AttentionCase) -> torch.Tensor:
    attention = NativeAttention(case.num_heads, case.layout)
    return attention.attend(0, attention.plan(case.queries), case.qkv, case.cache)


def assert_right(case: AttentionCase) -> None:
    found, wanted = attended(case), textbook(case)
    assert found.dtype is torch.float32
    # 2e-6 are some ten roundings of float32, on outputs of about one.
    assert (found - wanted).abs().max() < 5e-6


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_equals_the_textbook(shape: tuple[int, int, int], window: int | None) -> None:
    assert_right(draw_case(*shape, window=window))


@pytest.mark.parametrize("window", [None, 1, 5, 128, 129])
def test_it_does_with_two_threads(window: int | None, two_threads: None) -> None:
    assert_right(draw_case(8, 4, 64, window=window))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(8, 4, 64), (32, 1, 128), (6, 3, 36), (14, 2, 80)], ids=str)
def test_it_reads_narrower_caches(shape: tuple[int, int, int], dtype: str) -> None:
    assert_right(draw_case(*shape, dtype=dtype))


@pytest.mark.parametrize("block_size", [1, 5, 8, 32, 64, 200])
def test_it_reads_blocks_of_any_size(block_size: int) -> None:
    assert_right(draw_case(8, 4, 64, block_size=block_size, window=100))


@pytest.mark.prove
def test_all_of_it_together(two_threads: None) -> None:
    sizes = itertools.product((1, 2, 3, 4, 7, 8, 12, 16), (1, 2, 3), (64, 80, 96, 128, 192, 256))
    options = itertools.product((8, 16, 48, 64), (None, 1, 64, 128, 300), (1, 2))
    dtypes = ("float32", "bfloat16", "float16")
    for (group, kv_heads, dim), (block_size, window, threads) in zip(
        sizes, itertools.cycle(options), strict=False
    ):
        torch.set_num_threads(threads)
        for dtype in dtypes:
            case = draw_case(
                group * kv_heads, kv_heads, dim, block_size=block_size, window=window, dtype=dtype
            )
            assert_right(case)


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((8, 4, 64), None),
        pytest.param((14, 2, 64), 100, marks=pytest.mark.slow),
        pytest.param((4, 2, 17), 100, marks=pytest.mark.slow),
        pytest.param((20, 2, 64), None, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_token_has_the_same_bits_in_any_batch_chunk_and_number_of_threads(
    shape: tuple[int, int, int], window: int | None, two_threads: None
) -> None:
    """So a prompt may be cut into chunks, handed over or computed again, and stays what it was."""
    case = draw_case(*shape, window=window, spans=CUT)
    together = attended(case)
    torch.set_num_threads(1)
    assert torch.equal(attended(case), together)
    attention = NativeAttention(case.num_heads, case.layout)
    first = 0
    for query, row in zip(case.queries, case.rows, strict=True):
        wanted = together[first : first + query.num_new]
        first += query.num_new
        for size in {1, 7, query.num_new}:
            for part in range(0, query.num_new, size):
                num_new = min(size, query.num_new - part)
                piece = Query(query.block_table, query.start + part, num_new)
                own = row[part : part + num_new]
                found = attention.attend(0, attention.plan([piece]), own, case.cache)
                assert torch.equal(found, wanted[part : part + num_new])


def test_a_long_context_is_shared_by_all_threads_and_keeps_its_bits(two_threads: None) -> None:
    case = draw_case(4, 2, 64, spans=[(8191, 1)])
    attention = NativeAttention(case.num_heads, case.layout)
    plan = attention.plan(case.queries)
    assert plan[None].step.num_units == 64
    found = [attention.attend(0, plan, case.qkv, case.cache) for _ in range(3)]  # by layer
    torch.set_num_threads(1)
    alone = attended(case)
    assert all(torch.equal(each, alone) for each in found)


def test_half_precision_comes_and_goes_as_it_is() -> None:
    case = draw_case(8, 4, 64, dtype="bfloat16")
    attention = NativeAttention(case.num_heads, case.layout)
    narrow = case.qkv.bfloat16()
    found = attention.attend(0, attention.plan(case.queries), narrow, case.cache)
    assert found.dtype is torch.bfloat16
    assert (found.double() - textbook(case)).abs().max() < 0.05


def test_its_exponential_is_right_to_two_units_in_the_last_place() -> None:
    x = -torch.linspace(0, 87.3, 200_001)
    found = torch.empty_like(x)
    pointers = (ctypes.c_void_p(each.data_ptr()) for each in (x, found))
    library(SOURCE, "KV=float").attention_exponential(ctypes.c_int64(len(x)), *pointers)
    wanted = x.double().exp()
    assert found[0] == 1
    assert ((found - wanted).abs() / wanted).max() < 2 * 2.0**-23


def test_what_is_no_number_stays_none() -> None:
    case = draw_case(8, 4, 64, spans=[(40, 1), (40, 1)])
    case.rows[0][:, :8] = torch.nan
    found = attended(case)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


def test_its_threads_are_torch_s_own(two_threads: None) -> None:
    """Of two OpenMP runtimes in a process, each would have a pool of threads of its own."""
    attended(draw_case(8, 4, 64))
    entry = openmp_entry()
    rows = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    files = [(*(int(end, 16) for end in row[0].split("-")), row[-1]) for row in rows]
    runtimes = {path for _, _, path in files if re.match(r"lib(gomp|omp|iomp)", Path(path).name)}
    assert [path for low, high, path in files if low <= entry < high] == [*runtimes]
