"""Triton's kernels equal the textbook and torch: on a CUDA device, and on the CPU by the
interpreter where `test_triton_interpreted.py` runs this file."""

import dataclasses
import itertools
import os

import pytest
import torch
from torch import Tensor

from bench.gpu import GpuSizes, cases, figures
from cluster.errors import ConfigError
from cluster.measurements import Measurements
from engine.attention_choice import choose_attention
from engine.checkpoint import load_spec
from engine.config import ATTENTION, KERNEL_MISSING, EngineConfig
from engine.engine import Engine
from engine.kv_cache import DTYPES, KvCache, slots_of
from engine.layer_ops import TorchLayerOps
from engine.layer_ops_choice import TOLERANCES, largest_difference
from engine.paged_attention import PagedAttention
from engine.triton_kernels.triton_attention import TritonAttention
from engine.triton_kernels.triton_layer_ops import TritonLayerOps
from tests.checkpoints import FAMILIES, checkpoint
from tests.engine.attention_cases import AttentionCase, draw_case, textbook
from tests.engine.driver import Driver, make_sequence
from tests.engine.greedy import count_mismatches, draw_prompts
from tests.engine.model_sizes import spec_of

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")
pytestmark = [] if IS_INTERPRETED else [pytest.mark.gpu]

torch.set_num_threads(1)

# (start, number of new tokens): tokens alone and chunks about edges of blocks and of pieces; of the
# chunk at 254 only the last two tokens see what is split off.
MIXED = ((0, 1), (0, 18), (17, 1), (31, 5), (1, 2), (254, 4), (520, 1))
TOKENS = ((0, 1), (17, 1), (255, 1), (256, 1), (300, 1))
# By what is computed: outputs are of about one, and rounded once; weights are rounded, too.
CLOSE = {"float32": 5e-6, "float16": 5e-3, "bfloat16": 4e-2}


def attended(case: AttentionCase, dtype: str, soft_cap: float | None = None) -> Tensor:
    attention = TritonAttention(case.num_heads, case.layout, DEVICE, DTYPES[dtype], soft_cap)
    plan = attention.plan(case.queries)
    qkv, cache = case.qkv.to(DEVICE, DTYPES[dtype]), case.cache.to(DEVICE)
    return attention.attend(0, plan, qkv, cache).cpu()


def rounded(case: AttentionCase, dtype: str) -> AttentionCase:
    """Its queries as they are in `dtype`."""
    rows = [row.to(DTYPES[dtype]).float() for row in case.rows]
    return dataclasses.replace(case, rows=rows)


def assert_right(case: AttentionCase, dtype: str, soft_cap: float | None = None) -> None:
    found = attended(case, dtype, soft_cap)
    assert found.dtype is DTYPES[dtype]
    wanted = textbook(rounded(case, dtype), soft_cap)
    assert (found - wanted).abs().max() < CLOSE[dtype]


# Heads, K/V heads, head size; block size; window; soft cap; what is computed, what is kept.
CASES = [
    ((4, 4, 64), 16, None, None, "float32", "float32", MIXED),
    ((14, 2, 80), 8, 100, None, "float32", "bfloat16", MIXED),
    ((16, 1, 256), 64, None, 5.0, "float32", "float32", TOKENS),
    ((8, 2, 128), 32, 20, 2.0, "bfloat16", "bfloat16", MIXED),
    ((6, 2, 96), 24, None, None, "float16", "float16", MIXED),
    ((2, 1, 128), 16, 1, None, "bfloat16", "float32", MIXED),
    ((3, 1, 36), 5, 300, None, "float32", "float32", TOKENS),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_equals_the_textbook(case: tuple[object, ...]) -> None:
    shape, block_size, window, soft_cap, dtype, kv_dtype, spans = case
    drawn = draw_case(*shape, block_size=block_size, window=window, dtype=kv_dtype, spans=spans)
    assert_right(drawn, dtype, soft_cap)


@pytest.mark.prove
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 192, 256])
def test_attention_over_the_whole_grid(dim: int, dtype: str) -> None:
    options = itertools.product((8, 16, 48, 64), (None, 1, 64, 300), (None, 3.0), (MIXED, TOKENS))
    chosen = list(options)[list(DTYPES).index(dtype) :: 3]
    sizes = itertools.product((1, 2, 3, 4, 7, 8, 12, 16), (1, 2))
    for (group, kv_heads), each in zip(sizes, chosen, strict=False):
        block_size, window, soft_cap, spans = each
        case = draw_case(
            group * kv_heads,
            kv_heads,
            dim,
            block_size=block_size,
            window=window,
            dtype=dtype,
            spans=spans,
            seed=group,
        )
        assert_right(case, dtype, soft_cap)


def test_what_a_window_has_left_behind_is_not_read() -> None:
    """Its blocks may have been given away: what lies there may be no number."""
    case = draw_case(4, 2, 64, window=40, spans=[(300, 1), (70, 20)])
    wanted = textbook(case)
    for query in case.queries:
        behind = slots_of(query.block_table, 16, 0, query.start - 39)
        case.cache[:, torch.from_numpy(behind)] = torch.nan
    assert (attended(case, "float32") - wanted).abs().max() < CLOSE["float32"]


def test_a_token_has_the_same_bits_whatever_tokens_run_beside_it() -> None:
    case = draw_case(4, 2, 64, spans=TOKENS)
    together = attended(case, "float32")
    for place, (query, row) in enumerate(zip(case.queries, case.rows, strict=True)):
        alone = dataclasses.replace(case, queries=[query], rows=[row])
        assert torch.equal(attended(alone, "float32")[0], together[place])


def test_what_is_no_number_stays_none() -> None:
    case = draw_case(4, 2, 64, spans=[(40, 1), (40, 1)])
    case.rows[0][:, :4] = torch.nan
    found = attended(case, "float32")
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


def test_layers_of_several_windows_are_planned_together() -> None:
    case = draw_case(4, 2, 64, spans=[(300, 1), (20, 6)])
    layout = dataclasses.replace(case.layout, num_layers=3, windows=(None, 30, None))
    attention = TritonAttention(4, layout, DEVICE, torch.float32)
    plan = attention.plan(case.queries)
    assert plan[None].tables.data_ptr() == plan[30].tables.data_ptr()
    for layer, window in enumerate(layout.windows):
        windowed = dataclasses.replace(case.layout, windows=(window,))
        found = attention.attend(layer, plan, case.qkv.to(DEVICE), case.cache.to(DEVICE)).cpu()
        wanted = textbook(dataclasses.replace(case, layout=windowed))
        assert (found - wanted).abs().max() < CLOSE["float32"]


def test_it_serves_where_it_is_right_and_torch_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layout = draw_case(4, 2, 64, spans=[(0, 1)]).layout

    def choose(wanted: str) -> tuple[object, str]:
        measurements = Measurements()
        chosen = choose_attention(wanted, 4, layout, DEVICE, torch.float32, measurements)
        return chosen, measurements.choices[ATTENTION]

    chosen, said = choose("triton")
    assert isinstance(chosen, TritonAttention)
    assert said.startswith("triton, ")
    attend = TritonAttention.attend
    monkeypatch.setattr(TritonAttention, "attend", lambda *args: attend(*args) * torch.nan)
    with pytest.raises(ConfigError, match="there is no kernel: what it computes differs by nan"):
        choose("triton")
    monkeypatch.setattr("engine.attention_choice.PREFERRED", {DEVICE.type: "triton"})
    chosen, said = choose("auto")
    assert isinstance(chosen, PagedAttention)
    assert said.startswith(KERNEL_MISSING)

    def failing(*_: object) -> None:
        raise RuntimeError("no C compiler\nfor what launches it")

    monkeypatch.setattr(TritonAttention, "attend", failing)
    with pytest.raises(ConfigError, match=r"Triton failed: RuntimeError: no C compiler\. Mend"):
        choose("triton")


@pytest.mark.parametrize(
    "family",
    ["qwen3-window"]
    + [pytest.param(each, marks=pytest.mark.prove) for each in FAMILIES if each != "qwen3-window"],
)
def test_an_engine_that_attends_by_it_gives_the_reference(family: str) -> None:
    config = EngineConfig(
        checkpoint=checkpoint(family),
        num_blocks=64,
        block_size=16,
        num_threads=1,
        device=DEVICE.type,
        attention="triton",
    )
    driver = Driver(Engine(load_spec(checkpoint(family)), config), budget=24, seed=1)
    prompts = draw_prompts(3, 3, longest=40)
    outputs = driver.run([make_sequence(prompt, max_tokens=3) for prompt in prompts])
    assert driver.num_mixed
    assert count_mismatches(family, prompts, outputs) == 0


SHAPES = [(512, 1536, 4, 2, 64), (96, 1100, 7, 1, 80), (33, 7, 3, 3, 6)]


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"),
    [
        ("float32", "float32"),
        ("float32", "bfloat16"),
        ("bfloat16", "bfloat16"),
        ("float16", "float16"),
    ],
)
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_what_lies_between_products_equals_torch(
    sizes: tuple[int, ...], dtype: str, kv_dtype: str
) -> None:
    spec = spec_of(*sizes)
    cache = KvCache(spec.kv_layout(num_blocks=1, block_size=8, dtype=kv_dtype), None, DEVICE)
    # The interpreter cuts off what bfloat16 has no room for, where devices round.
    narrowest = kv_dtype if IS_INTERPRETED else dtype
    tolerance = {"float32": 2e-5}.get(narrowest, TOLERANCES[DTYPES[narrowest]])
    assert largest_difference(TritonLayerOps, spec, cache, DTYPES[dtype]) < tolerance


def test_heads_that_are_not_normed_are_rotated_into_their_layer_only() -> None:
    spec = spec_of(*SHAPES[0])
    layout = spec.kv_layout(num_blocks=4, block_size=8)
    caches = [KvCache(layout, None, DEVICE) for _ in range(2)]
    rows = torch.randn(5, 8, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    positions = torch.tensor([0, 1, 7, 4096, 100_000], device=DEVICE)
    slots = torch.tensor([3, 31, 0, 8, 9], device=DEVICE)
    found = []
    for form, cache in zip((TritonLayerOps, TorchLayerOps), caches, strict=True):
        ops, qkv = form(spec, cache), rows.clone()
        ops.rotate(1, qkv, None, ops.rotations(positions), slots)
        found.append(qkv)
    torch.testing.assert_close(*found, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(caches[0].layers[1], caches[1].layers[1], atol=2e-5, rtol=1e-5)
    assert not caches[0].layers[0].any()


def test_a_gate_is_right_far_out() -> None:
    gate = torch.tensor([-1e4, -200.0, -88.0, -20.0, -0.0, 0.0, 20.0, 88.0, 200.0, 1e30] * 4)
    spec = spec_of(*SHAPES[0])
    cache = KvCache(spec.kv_layout(num_blocks=1, block_size=8), None, DEVICE)
    gate_up = torch.stack([gate, torch.ones(40)]).view(1, 80).to(DEVICE)
    found = TritonLayerOps(spec, cache).gate(gate_up)[0].cpu()
    torch.testing.assert_close(found, torch.nn.functional.silu(gate), atol=1e-30, rtol=1e-5)


def test_what_waits_for_a_gpu_is_measured_line_by_line() -> None:
    sizes = GpuSizes(
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        hidden_size=32,
        intermediate_size=32,
        batches=(1, 2),
        context=40,
        prompt=17,
        cached_bytes=1,
        copied_bytes=64,
        matrix=8,
        rounds=1,
    )
    measured = list(figures(sizes, DEVICE))
    assert [each.case for each in measured] == [each.case for each in cases(sizes)]
    assert all(each.speed for each in measured)
