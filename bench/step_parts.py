"""What a decode step of the 54 M Llama takes beside its products, attention and sampling, and how
many operators of torch it calls.

    python -m bench.step_parts [--threads 1] [--steps 96] [--weights float32]

Medians of the quieter half of the steps. The clock itself costs some 0.05 ms of them.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import engine.engine
from bench import machine
from bench.engine import BLOCK_SIZE, PagedRun
from bench.random_llama import SHAPE_54M, write_random_llama
from cluster.measurements import Measurements
from cluster.process import cache_folder
from engine.checkpoint import load_spec
from engine.config import EngineConfig
from engine.engine import Engine
from engine.layers.linear import Linear

CASES = [(1, 512), (4, 512), (16, 128), (16, 512)]  # batch, context


class Clock:
    """Adds up seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args)
            finally:
                self.seconds[part] += time.perf_counter() - began

        return timing


def clocked(config: EngineConfig) -> tuple[Engine, Clock]:
    """An engine whose parts are timed; for good: this process does nothing else."""
    made, clock = Engine(load_spec(config.checkpoint), config, None, _remembered()), Clock()
    Linear.__call__ = clock.timed("products", Linear.__call__)  # type: ignore[method-assign]
    attention: Any = made._attention
    attention.attend = clock.timed("attention", attention.attend)
    module: Any = engine.engine
    module.sample = clock.timed("sampling", module.sample)
    return made, clock


def _remembered() -> Measurements:
    return Measurements(cache_folder())


def show(made: Engine, clock: Clock, batch: int, context: int, num_steps: int) -> None:
    generator = torch.Generator().manual_seed(context)
    size = (batch, context)
    prompts = torch.randint(3, SHAPE_54M.vocab_size, size, generator=generator).tolist()
    run = PagedRun(made, prompts, num_steps + 3)
    run.step()
    run.step()
    steps: list[dict[str, float]] = []
    for _ in range(num_steps):
        clock.seconds.clear()
        began = time.perf_counter()
        run.step()
        steps.append({**clock.seconds, "step": time.perf_counter() - began})
    steps = sorted(steps, key=lambda step: step["step"])[: max(1, num_steps // 2)]
    ms = {part: statistics.median(step[part] for step in steps) * 1e3 for part in steps[0]}
    rest = statistics.median(2 * step["step"] - sum(step.values()) for step in steps) * 1e3
    told = ", ".join(f"{part} {spent:.2f}" for part, spent in ms.items())
    print(f"{batch} behind {context}: {told} ms; beside them {rest:.2f}", flush=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run.step()
    names = [event.name for event in profiled.events() if event.cpu_parent is None]
    empty = sum(name.startswith("aten::empty") for name in names)
    print(f"    {len(names)} operators, {empty} of them only make room", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--weights", default="float32", choices=["float32", "bfloat16", "int8"])
    args = parser.parse_args()
    print(machine.describe())
    with tempfile.TemporaryDirectory() as scratch:
        write_random_llama(Path(scratch), SHAPE_54M)
        made, clock = clocked(
            EngineConfig(
                checkpoint=Path(scratch),
                num_blocks=1024,
                block_size=BLOCK_SIZE,
                num_threads=args.threads,
                weights=args.weights,
            )
        )
        for batch, context in CASES:
            show(made, clock, batch, context, args.steps)


if __name__ == "__main__":
    main()
