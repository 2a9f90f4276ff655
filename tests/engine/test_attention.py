"""Attention on scattered slots equals the textbook on the same tokens in order."""

import random

import pytest
import torch

from cluster.types import KvLayout
from engine.attention import Query
from engine.kv_cache import slots_of
from engine.layers.rope import interleaved_order, rotate_in_place
from engine.paged_attention import PagedAttention, SlotRun, attend_plainly, slot_runs

torch.set_num_threads(1)

HEADS, KV_HEADS, DIM, BLOCK = 4, 2, 8, 4
CPU = torch.device("cpu")


def paged(*, block_size: int, window: int | None = None) -> PagedAttention:
    layout = KvLayout(
        num_layers=1,
        num_blocks=300,
        block_size=block_size,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        windows=(window,),
    )
    return PagedAttention(HEADS, layout, CPU)


def textbook(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None
) -> torch.Tensor:
    """query [num_new, heads, dim] at the end of keys and values [num_tokens, kv_heads, dim]."""
    num_new, num_tokens = len(query), len(keys)
    keys, values = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query, keys)
    own = torch.arange(num_tokens - num_new, num_tokens)[:, None]
    position = torch.arange(num_tokens)[None, :]
    hidden = position > own
    if window is not None:
        hidden |= position <= own - window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values).reshape(num_new, -1)


def tables(seed: int, num_blocks: int, longest_run: int) -> list[int]:
    """Block ids in runs of random length, the runs shuffled."""
    rng = random.Random(seed)
    runs, block = [], 0
    while block < num_blocks:
        length = rng.randint(1, longest_run)
        runs.append(range(block, min(num_blocks, block + length)))
        block += length
    rng.shuffle(runs)
    return [block for run in runs for block in run]


@pytest.mark.parametrize("min_run", [1, 20, 10_000])
@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("longest_run", [1, 6, 60, 300])
def test_mixed_rows_equal_the_textbook(
    longest_run: int, window: int | None, min_run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.paged_attention.MIN_RUN_ELEMENTS", min_run * KV_HEADS * DIM)
    torch.manual_seed(longest_run)
    table = tables(longest_run, 300, longest_run)
    cache = torch.randn(2, 300 * BLOCK, KV_HEADS, DIM)
    attention = paged(block_size=BLOCK, window=window)
    queries, wanted, rows = [], [], []
    first = 0
    for start, num_new in [(0, 1), (0, 33), (17, 1), (31, 70), (200, 3), (390, 1), (1, 2)]:
        blocks = table[first : first + -(-(start + num_new) // BLOCK)]
        first += len(blocks)
        slots = torch.from_numpy(slots_of(blocks, BLOCK, 0, start + num_new))
        row = torch.randn(num_new, HEADS + 2 * KV_HEADS, DIM)
        row[:, HEADS:] = cache[:, slots[start:]].transpose(0, 1).flatten(1, 2)
        queries.append(Query(blocks, start, num_new))
        wanted.append(textbook(row[:, :HEADS], cache[0, slots], cache[1, slots], window))
        rows.append(row)
    plan = attention.plan(queries)
    found = attention.attend(0, plan, torch.cat(rows), cache)
    assert torch.allclose(found, torch.cat(wanted), atol=1e-5)


def test_consecutive_blocks_are_one_view_and_scattered_ones_one_gather() -> None:
    attention = paged(block_size=16)
    [together] = attention.plan([Query(list(range(10, 50)), 600, 1)])[None]
    assert together.spans == [SlotRun(160, 601)]
    assert together.gathers == []
    shared = [*range(10, 110), 3, 190, 5, 177]
    [scattered] = attention.plan([Query(shared, 1650, 1)])[None]
    assert scattered.spans == [SlotRun(160, 1600)]
    assert [len(slots) for slots in scattered.gathers] == [51]


def test_a_gather_copies_a_bounded_number_of_tokens_at_once() -> None:
    attention = paged(block_size=16)
    table = list(range(0, 1000, 2))
    [plan] = attention.plan([Query(table, 7000, 1)])[None]
    assert max(len(slots) for slots in plan.gathers) <= 1024
    assert sum(len(slots) for slots in plan.gathers) == 7001


def test_a_window_reads_no_slot_behind_it() -> None:
    attention = paged(block_size=16, window=100)
    [plan] = attention.plan([Query(list(range(50)), 700, 1)])[100]
    assert plan.spans == [SlotRun(601, 100)]


@pytest.mark.parametrize(
    ("table", "start", "stop", "runs"),
    [
        ([7], 0, 3, [(28, 3)]),
        ([7, 8], 1, 6, [(29, 5)]),
        ([7, 9, 10], 0, 12, [(28, 4), (36, 8)]),
        ([7, 9, 10], 5, 9, [(37, 4)]),
        ([2, 1, 0], 3, 10, [(11, 1), (4, 4), (0, 2)]),
        ([2], 2, 2, []),
    ],
)
def test_runs_of_slots(
    table: list[int], start: int, stop: int, runs: list[tuple[int, int]]
) -> None:
    found = slot_runs(table, 4, start, stop)
    assert found == runs
    slots = [slot + i for slot, num in found for i in range(num)]
    if stop > start:
        assert slots == slots_of(table, 4, start, stop).tolist()


def test_the_plain_form_used_off_the_cpu_says_the_same() -> None:
    torch.manual_seed(1)
    query, keys, values = torch.randn(3, 2, 4, 6, 8).unbind(0)
    output, log_sum = torch._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, 0.0, True, scale=1.0
    )
    found = attend_plainly(query, keys, values, is_causal=True)
    assert torch.allclose(found.output, output, atol=1e-6)
    assert torch.allclose(found.log_sum, log_sum, atol=1e-6)


def test_the_complex_product_is_the_usual_rotation() -> None:
    torch.manual_seed(2)
    heads = torch.randn(5, 3, DIM)
    angles = torch.randn(5, DIM // 2)
    cos, sin = (f(angles).repeat(1, 2)[:, None] for f in (torch.cos, torch.sin))
    low, high = heads.chunk(2, -1)
    wanted = heads * cos + torch.cat([-high, low], -1) * sin
    order = interleaved_order(DIM)
    stored = heads[..., order].contiguous()
    rotate_in_place(stored, torch.polar(torch.ones_like(angles), angles).unsqueeze(1))
    assert torch.allclose(stored, wanted[..., order], atol=1e-6)
    half = heads[..., order].contiguous().half()
    rotate_in_place(half, torch.polar(torch.ones_like(angles), angles).unsqueeze(1))
    assert torch.allclose(half.float(), wanted[..., order], atol=1e-2)
