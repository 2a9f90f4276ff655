"""Everything that waits for a GPU, on one of them: the tests that are marked for it, and the
kernels' speeds beside what the card copies and multiplies.

    scripts/gpu [--output TABLE.md] [--skip-tests]

`graph` is the kernels alone, replayed; `launched` is with what it costs to queue them from Python,
which is all that counts in small steps. Figures are medians. Without a GPU each line says so.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.sheets import Sheet
from cluster.types import KvLayout
from engine.attention import Attention, Query
from engine.kv_cache import KvCache
from engine.model_spec import ModelSpec, RopeSpec
from engine.paged_attention import PagedAttention
from engine.triton_kernels.triton_attention import TritonAttention
from engine.triton_kernels.triton_layer_ops import TritonLayerOps

TEST_LIMIT_S = 300.0
NOT_RUN = "not run"
# Who attends, and how it is started; torch's plan is on the host, so there is no graph of it.
DECODES = (("triton", "graph"), ("triton", "launched"), ("torch", "launched"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSizes:
    """What is measured: by default the attention of an 8 B Llama, in bfloat16."""

    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    hidden_size: int = 4096
    intermediate_size: int = 14336
    block_size: int = 16
    batches: tuple[int, ...] = (1, 16, 64)
    context: int = 4096
    prompt: int = 8192
    cached_bytes: int = 256 * 2**20  # at least so much is read in turns: more than any L2 holds
    copied_bytes: int = 2**30
    matrix: int = 8192
    rounds: int = 20

    def layout(self, num_layers: int, num_blocks: int) -> KvLayout:
        return KvLayout(
            num_layers=num_layers,
            num_blocks=num_blocks,
            block_size=self.block_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype="bfloat16",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFigure:
    case: str
    unit: str
    speed: float | None = None
    ceiling: float | None = None  # in the same unit

    def cells(self) -> tuple[str, ...]:
        if self.speed is None:
            return self.case, NOT_RUN, self.unit, "", ""
        if self.ceiling is None:
            return self.case, f"{self.speed:,.1f}", self.unit, "", ""
        share = f"{self.speed / self.ceiling:.2f}"
        return self.case, f"{self.speed:,.1f}", self.unit, f"{self.ceiling:,.1f}", share


def cases(sizes: GpuSizes) -> list[GpuFigure]:
    """All lines, unmeasured, in the order of `figures`."""
    names = [
        ("copy", "GB/s"),
        ("matmul", "TFLOP/s"),
        *(
            (decode_name(sizes, batch, *each), "GB/s")
            for batch in sizes.batches
            for each in DECODES
        ),
        *((prefill_name(sizes, form), "TFLOP/s") for form in ("triton", "torch")),
        *((layer_name(sizes, name), "GB/s") for name in ("norm", "rotate", "gate")),
    ]
    return [GpuFigure(case=name, unit=unit) for name, unit in names]


def decode_name(sizes: GpuSizes, batch: int, form: str, mode: str) -> str:
    return f"decode {batch} behind {sizes.context:,}, {form}, {mode}"


def prefill_name(sizes: GpuSizes, form: str) -> str:
    return f"prefill {sizes.prompt:,}, {form}"


def layer_name(sizes: GpuSizes, name: str) -> str:
    return f"{name} of {sizes.prompt:,}, triton"


@torch.inference_mode()
def figures(sizes: GpuSizes, device: torch.device) -> Iterator[GpuFigure]:
    copy, matmul = copied(sizes, device), multiplied(sizes, device)
    yield GpuFigure(case="copy", unit="GB/s", speed=copy)
    yield GpuFigure(case="matmul", unit="TFLOP/s", speed=matmul)
    for batch in sizes.batches:
        yield from decode(sizes, batch, device, copy)
    yield from prefill(sizes, device, matmul)
    yield from layer_ops(sizes, device, copy)


def copied(sizes: GpuSizes, device: torch.device) -> float:
    """GB/s, read and written."""
    target, source = torch.empty(2, sizes.copied_bytes // 2, dtype=torch.uint8, device=device)
    return sizes.copied_bytes / median_s(lambda: target.copy_(source), device, sizes.rounds) / 1e9


def multiplied(sizes: GpuSizes, device: torch.device) -> float:
    """TFLOP/s"""
    one = torch.randn(sizes.matrix, sizes.matrix, device=device).bfloat16()
    return 2 * sizes.matrix**3 / median_s(lambda: one @ one, device, sizes.rounds) / 1e12


def decode(sizes: GpuSizes, batch: int, device: torch.device, copy: float) -> Iterator[GpuFigure]:
    num_blocks = -(-sizes.context // sizes.block_size)
    layer_bytes = sizes.layout(1, batch * num_blocks).pool_bytes
    layout = sizes.layout(-(-sizes.cached_bytes // layer_bytes), batch * num_blocks)
    tables = torch.randperm(batch * num_blocks).view(batch, num_blocks).tolist()
    queries = [Query(table, sizes.context - 1, 1) for table in tables]
    caches = [drawn_cache(layout, device) for _ in range(layout.num_layers)]
    qkv = drawn_qkv(sizes, batch, device)
    forms: dict[str, Attention] = {
        "triton": TritonAttention(sizes.num_heads, layout, device, torch.bfloat16),
        "torch": PagedAttention(sizes.num_heads, layout, device),
    }
    for name, mode in DECODES:
        form = forms[name]
        run = partial(attend_all, form, form.plan(queries), qkv, caches)
        seconds = median_s(run, device, sizes.rounds, as_graph=mode == "graph")
        yield GpuFigure(
            case=decode_name(sizes, batch, name, mode),
            unit="GB/s",
            speed=layout.pool_bytes / seconds / 1e9,
            ceiling=copy,
        )


def attend_all(form: Attention, plan: object, qkv: Tensor, caches: list[Tensor]) -> None:
    for layer, cache in enumerate(caches):
        form.attend(layer, plan, qkv, cache)


def prefill(sizes: GpuSizes, device: torch.device, matmul: float) -> Iterator[GpuFigure]:
    """Of a whole prompt; beside torch's own attention to the same keys in order, without a pool."""
    num_blocks = -(-sizes.prompt // sizes.block_size)
    layout = sizes.layout(1, num_blocks)
    form = TritonAttention(sizes.num_heads, layout, device, torch.bfloat16)
    plan = form.plan([Query(torch.randperm(num_blocks).tolist(), 0, sizes.prompt)])
    cache, qkv = drawn_cache(layout, device), drawn_qkv(sizes, sizes.prompt, device)
    ends = sizes.num_heads, sizes.num_heads + sizes.num_kv_heads
    query, keys, values = qkv.transpose(0, 1)[None].tensor_split(ends, dim=1)
    runs: dict[str, Callable[[], object]] = {
        "triton": partial(form.attend, 0, plan, qkv, cache),
        "torch": partial(
            scaled_dot_product_attention, query, keys, values, is_causal=True, enable_gqa=True
        ),
    }
    num_seen = sizes.prompt * (sizes.prompt + 1) // 2
    work = 4 * sizes.num_heads * sizes.head_dim * num_seen
    for name, run in runs.items():
        yield GpuFigure(
            case=prefill_name(sizes, name),
            unit="TFLOP/s",
            speed=work / median_s(run, device, sizes.rounds) / 1e12,
            ceiling=matmul,
        )


def layer_ops(sizes: GpuSizes, device: torch.device, copy: float) -> Iterator[GpuFigure]:
    num_blocks = -(-sizes.prompt // sizes.block_size)
    ops = TritonLayerOps(spec_of(sizes), KvCache(sizes.layout(1, num_blocks), None, device))
    tokens = torch.arange(sizes.prompt, device=device)
    hidden, added = torch.zeros(
        2, sizes.prompt, sizes.hidden_size, dtype=torch.bfloat16, device=device
    )
    gate_up = hidden.new_zeros(sizes.prompt, 2 * sizes.intermediate_size)
    qkv, rotations = drawn_qkv(sizes, sizes.prompt, device), ops.rotations(tokens)
    token_bytes = qkv.nbytes // qkv.shape[1]
    turned_bytes = token_bytes * (sizes.num_heads + 3 * sizes.num_kv_heads)  # and what is kept
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "norm": (partial(ops.norm, hidden, added, hidden[0]), 4 * hidden.nbytes),
        "rotate": (partial(ops.rotate, 0, qkv, None, rotations, tokens), qkv.nbytes + turned_bytes),
        "gate": (partial(ops.gate, gate_up), gate_up.nbytes * 3 // 2),
    }
    for name, (run, num_bytes) in runs.items():
        seconds = median_s(run, device, sizes.rounds)
        yield GpuFigure(
            case=layer_name(sizes, name), unit="GB/s", speed=num_bytes / seconds / 1e9, ceiling=copy
        )


def spec_of(sizes: GpuSizes) -> ModelSpec:
    return ModelSpec(
        family="llama",
        num_layers=1,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        vocab_size=1,
        context_length=sizes.prompt,
        rms_norm_eps=1e-5,
        rope=RopeSpec(),
        windows=(None,),
        is_tied=False,
        has_qkv_bias=False,
        has_output_bias=False,
        has_mlp_bias=False,
        has_qk_norm=False,
    )


def drawn_cache(layout: KvLayout, device: torch.device) -> Tensor:
    num_slots = layout.num_blocks * layout.block_size
    shape = 2, num_slots, layout.num_kv_heads, layout.head_dim
    return torch.randn(shape, dtype=torch.bfloat16, device=device)


def drawn_qkv(sizes: GpuSizes, num_tokens: int, device: torch.device) -> Tensor:
    shape = num_tokens, sizes.num_heads + 2 * sizes.num_kv_heads, sizes.head_dim
    return torch.randn(shape, device=device).mul_(0.1).bfloat16()


def median_s(
    run: Callable[[], object], device: torch.device, rounds: int, *, as_graph: bool = False
) -> float:
    """Seconds of a run, whose first two are not counted; on a GPU between two of its events."""
    for _ in range(2):
        run()
    if device.type != "cuda":
        return statistics.median(_wall_s(run) for _ in range(rounds))
    torch.cuda.synchronize(device)
    if as_graph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
    return statistics.median(_device_s(run) for _ in range(rounds))


def _wall_s(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _device_s(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def tests() -> str:
    """Their last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu and not prove"]
    try:
        done = subprocess.run(
            [*command, "tests/engine", "tests/kv_transfer"],
            capture_output=True,
            text=True,
            timeout=TEST_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"not ended after {TEST_LIMIT_S:.0f} s"
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
    return done.stdout.strip().rpartition("\n")[2]


def sheet(measured: list[GpuFigure], tested: str, where: str) -> Sheet:
    rows = [("tests", tested, "", "", ""), *(figure.cells() for figure in measured)]
    columns = ("case", "speed", "unit", "ceiling", "share")
    return Sheet(title=f"On one GPU: {where}", columns=columns, rows=rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="a file for the table, in Markdown")
    parser.add_argument("--skip-tests", action="store_true")
    asked = parser.parse_args(arguments)
    sizes = GpuSizes()
    if torch.cuda.is_available():
        device = torch.device("cuda", 0)
        tested = NOT_RUN if asked.skip_tests else tests()
        table = sheet(list(figures(sizes, device)), tested, torch.cuda.get_device_name(device))
    else:
        table = sheet(cases(sizes), NOT_RUN, "none here")
    Console(width=120).print(table.as_rich())
    if asked.output:
        asked.output.write_text(table.as_markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
