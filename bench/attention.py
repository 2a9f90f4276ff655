"""Attention alone: the kernel and torch's form beside what the machine can read and multiply, and a
whole step of the engine with either, in one run.

    python -m bench.attention [--threads 2] [--rounds 7] [--kv-dtype float32] [--steps]

All take turns in every round; figures are medians. `read` sums the same bytes of the same cache,
`mm` is a product of two square matrices. Blocks of 16 tokens lie scattered.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bench import machine
from bench.engine import BLOCK_SIZE, time_engine
from bench.random_llama import SHAPE_54M, write_random_llama
from cluster.measurements import Measurements
from cluster.process import cache_folder
from cluster.types import KvLayout
from engine.attention import Attention, Query
from engine.checkpoint import load_spec
from engine.config import EngineConfig
from engine.cpu_kernels.native_attention import NativeAttention
from engine.engine import Engine
from engine.kv_cache import DTYPES
from engine.paged_attention import PagedAttention

LEAST_SHARE = 0.8  # of what is read, that decode should reach
DECODE = [(1, 512), (1, 8192), (1, 32768), (16, 512), (64, 512), (16, 4096)]  # batch, context
PREFILL = [(0, 128), (0, 512), (0, 2048), (1536, 512), (7680, 512)]  # before, new
STEPS = [(1, 512, 16), (1, 8192, 8), (16, 512, 8), (64, 512, 4), (1, 512, 0), (1, 2048, 0)]
NUM_LAYERS = 4  # read one after the other, so that a short context is out of the nearest caches
MATRIX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.num_heads} heads over {self.num_kv_heads} of {self.head_dim}"


SHAPES = (
    Heads(num_heads=8, num_kv_heads=4, head_dim=64),
    Heads(num_heads=32, num_kv_heads=8, head_dim=128),
    Heads(num_heads=14, num_kv_heads=2, head_dim=64),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FormSpeeds:
    """Speeds of each form and of the ceiling, in one unit."""

    case: str
    unit: str
    speeds: Mapping[str, float]
    ceiling: str  # which of them none can exceed


class AttentionRuns:
    """Runs both forms over one shape's cache and queries."""

    def __init__(
        self, heads: Heads, dtype: str, spans: Sequence[tuple[int, int]], num_layers: int
    ) -> None:
        counts = [-(-(start + num_new) // BLOCK_SIZE) for start, num_new in spans]
        layout = KvLayout(
            num_layers=num_layers,
            num_blocks=sum(counts),
            block_size=BLOCK_SIZE,
            num_kv_heads=heads.num_kv_heads,
            head_dim=heads.head_dim,
            dtype=dtype,
        )
        table = random.Random(1).sample(range(layout.num_blocks), layout.num_blocks)
        tables = [[table.pop() for _ in range(count)] for count in counts]
        self._queries = [Query(own, *span) for own, span in zip(tables, spans, strict=True)]
        shape = 2, layout.num_blocks * BLOCK_SIZE, heads.num_kv_heads, heads.head_dim
        self._caches = [torch.randn(shape).to(DTYPES[dtype]) for _ in range(num_layers)]
        num_tokens = sum(num_new for _, num_new in spans)
        self._qkv = torch.randn(
            num_tokens, heads.num_heads + 2 * heads.num_kv_heads, heads.head_dim
        ).mul_(0.1)
        self.num_bytes = sum(cache.nbytes for cache in self._caches)
        self._forms: dict[str, Attention] = {
            "native": NativeAttention(heads.num_heads, layout),
            "torch": PagedAttention(heads.num_heads, layout, torch.device("cpu")),
        }

    def runs(self) -> dict[str, Callable[[], object]]:
        return {
            name: partial(self._attend, form, form.plan(self._queries))
            for name, form in self._forms.items()
        }

    def _attend(self, form: Attention, plan: object) -> None:
        for layer, cache in enumerate(self._caches):
            form.attend(layer, plan, self._qkv, cache)

    def read(self) -> None:
        """Sums every byte, four at a time."""
        for cache in self._caches:
            cache.view(torch.float32).sum()


def in_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Gives the median seconds of each; a first round is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def decode(heads: Heads, dtype: str, rounds: int) -> Iterator[FormSpeeds]:
    for batch, context in DECODE:
        both = AttentionRuns(heads, dtype, [(context - 1, 1)] * batch, NUM_LAYERS)
        seconds = in_turns({**both.runs(), "read": both.read}, rounds)
        yield FormSpeeds(
            case=f"decode {batch} behind {context:,}",
            unit="GB/s",
            speeds={name: both.num_bytes / each / 1e9 for name, each in seconds.items()},
            ceiling="read",
        )


def prefill(heads: Heads, dtype: str, rounds: int) -> Iterator[FormSpeeds]:
    one, other = torch.randn(2, MATRIX, MATRIX).unbind(0)
    for before, num_new in PREFILL:
        both = AttentionRuns(heads, dtype, [(before, num_new)], 1)
        runs: dict[str, Callable[[], object]] = {
            **both.runs(),
            "mm": partial(torch.mm, one, other),
        }
        seconds = in_turns(runs, rounds)
        num_seen = num_new * before + num_new * (num_new + 1) // 2
        work = dict.fromkeys(runs, 4 * heads.num_heads * heads.head_dim * num_seen)
        work["mm"] = 2 * MATRIX**3
        yield FormSpeeds(
            case=f"prefill {num_new:,} behind {before:,}",
            unit="GFLOP/s",
            speeds={name: work[name] / each / 1e9 for name, each in seconds.items()},
            ceiling="mm",
        )


def steps(threads: int, rounds: int) -> Iterator[FormSpeeds]:
    """Whole steps of the engine on the 54 M Llama, tokens a second."""
    with tempfile.TemporaryDirectory() as scratch:
        write_random_llama(Path(scratch), SHAPE_54M)
        engines = {form: _engine(Path(scratch), form, threads) for form in ("native", "torch")}
        for batch, length, num_steps in STEPS:
            generator = torch.Generator().manual_seed(length)
            shape = batch, length
            ids = torch.randint(3, SHAPE_54M.vocab_size, shape, generator=generator).tolist()
            taken: dict[str, list[float]] = {form: [] for form in engines}
            for _ in range(rounds + 1):
                for form, engine in engines.items():
                    taken[form].append(time_engine(engine, ids, num_steps))
            num_tokens = batch * (num_steps or length)
            kind = "decode" if num_steps else "prefill"
            yield FormSpeeds(
                case=f"step: {kind} {batch} x {length:,}",
                unit="tokens/s",
                speeds={f: num_tokens / statistics.median(t[1:]) for f, t in taken.items()},
                ceiling="",
            )


def _engine(checkpoint: Path, form: str, threads: int) -> Engine:
    config = EngineConfig(
        checkpoint=checkpoint,
        num_blocks=2560,
        block_size=BLOCK_SIZE,
        num_threads=threads,
        attention="native" if form == "native" else "torch",
    )
    return Engine(load_spec(checkpoint), config, measurements=Measurements(cache_folder()))


def show(figure: FormSpeeds) -> None:
    speeds = figure.speeds
    told = [f"{name} {speed:>8.1f}" for name, speed in speeds.items()]
    gain = speeds["native"] / speeds["torch"]
    line = f"  {figure.case:<28} {'  '.join(told)} {figure.unit:<8}  {gain:5.1f} x torch"
    if figure.ceiling:
        share = speeds["native"] / speeds[figure.ceiling]
        line += f"  {share:4.2f} of {figure.ceiling}"
        if figure.ceiling == "read":
            line += "" if share >= LEAST_SHARE else f"  (below {LEAST_SHARE})"
    print(line, flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kv-dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="only the first so many")
    parser.add_argument("--steps", action="store_true", help="whole steps of the engine, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine.describe())
    print(f"{args.threads} threads, KV in {args.kv_dtype}")
    for heads in SHAPES[: args.shapes]:
        print(heads)
        for figure in decode(heads, args.kv_dtype, args.rounds):
            show(figure)
        for figure in prefill(heads, args.kv_dtype, args.rounds):
            show(figure)
    if args.steps:
        for figure in steps(args.threads, args.rounds):
            show(figure)
    print(f"load after the run {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
