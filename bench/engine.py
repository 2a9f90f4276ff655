"""The engine alone against a bare torch loop, in one run: prefill and decode on a 54 M Llama.

    python -m bench.engine [--threads 2] [--rounds 7] [--json FILE]

The two take turns in every round, so that a busy machine slows both; figures are medians.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from bench.random_llama import SHAPE_54M, LlamaShape, write_random_llama
from cluster.types import BlockId, ComputeRequest, GenerationParams, SamplingParams
from engine.batch import Batch, BatchRow
from engine.engine import Engine, EngineConfig, load_spec
from engine.sequence import Sequence

BLOCK_SIZE = 16


class BareLoop:
    """What a careful person writes in forty lines: fused products, a KV slab, folded GQA."""

    def __init__(self, tensors: dict[str, Tensor], shape: LlamaShape) -> None:
        self.shape = shape
        self.dim = shape.hidden_size // shape.num_heads
        self.embedding, self.head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
        self.norm = tensors["model.norm.weight"]
        self.layers = []
        for i in range(shape.num_layers):
            get = {k.split(f"layers.{i}.")[1]: v for k, v in tensors.items() if f".{i}." in k}
            qkv = torch.cat([get[f"self_attn.{x}_proj.weight"] for x in "qkv"])
            gate_up = torch.cat([get[f"mlp.{x}_proj.weight"] for x in ("gate", "up")])
            self.layers.append(
                (get["input_layernorm.weight"], qkv, get["self_attn.o_proj.weight"],
                 get["post_attention_layernorm.weight"], gate_up, get["mlp.down_proj.weight"])
            )  # fmt: skip
        angles = torch.outer(
            torch.arange(shape.context_length).float(),
            1.0 / 10000.0 ** (torch.arange(0, self.dim, 2) / self.dim),
        )
        self.cos, self.sin = angles.cos()[:, None], angles.sin()[:, None]

    def slab(self, batch: int, length: int) -> Tensor:
        shape = self.shape
        return torch.empty(shape.num_layers, 2, batch, shape.num_kv_heads, length, self.dim)

    def rotate(self, x: Tensor, start: int) -> Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = (t[start : start + x.shape[1]] for t in (self.cos, self.sin))
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def step(self, ids: Tensor, start: int, slab: Tensor) -> Tensor:
        """Next tokens [batch] after ids [batch, num_new] at positions from `start`."""
        (batch, num_new), dim = ids.shape, self.dim
        heads, kv_heads = self.shape.num_heads, self.shape.num_kv_heads
        h = self.embedding[ids]
        for cache, (norm_1, qkv, output, norm_2, gate_up, down) in zip(
            slab, self.layers, strict=True
        ):
            x = linear(rms_norm(h, h.shape[-1:], norm_1, 1e-5), qkv)
            q, k, v = torch.split(x.view(batch, num_new, -1, dim), [heads, kv_heads, kv_heads], 2)
            q, k = self.rotate(q, start), self.rotate(k, start).transpose(1, 2)
            stop = start + num_new
            cache[0, :, :, start:stop], cache[1, :, :, start:stop] = k, v.transpose(1, 2)
            keys, values = cache[:, :, :, :stop]
            if num_new == 1:
                o = scaled_dot_product_attention(q.view(batch, kv_heads, -1, dim), keys, values)
            else:
                o = scaled_dot_product_attention(
                    q.transpose(1, 2), keys, values, is_causal=True, enable_gqa=True
                ).transpose(1, 2)
            h = h + linear(o.reshape(batch, num_new, -1), output)
            gate, up = linear(rms_norm(h, h.shape[-1:], norm_2, 1e-5), gate_up).chunk(2, -1)
            h = h + linear(silu(gate) * up, down)
        return linear(rms_norm(h[:, -1], h.shape[-1:], self.norm, 1e-5), self.head).argmax(-1)


class PagedRun:
    """The engine driven as a worker drives it, minus the worker."""

    def __init__(self, engine: Engine, prompts: list[list[int]], num_tokens: int) -> None:
        self.engine = engine
        params = GenerationParams(
            sampling=SamplingParams(seed=0, temperature=0.0), max_tokens=num_tokens
        )
        self.sequences = []
        first = 0
        for prompt in prompts:
            sequence = Sequence(
                ComputeRequest(
                    request_id="bench", prompt_ids=prompt, params=params, hash_key=bytes(32)
                )
            )
            num_blocks = -(-(len(prompt) + num_tokens) // BLOCK_SIZE)
            sequence.block_table = [BlockId(first + block) for block in range(num_blocks)]
            first += num_blocks + 1  # a gap, so that sequences are not evenly spaced by chance
            self.sequences.append(sequence)

    def step(self) -> None:
        rows = tuple(
            BatchRow(
                sequence=sequence,
                start=sequence.num_computed,
                num_new=sequence.num_uncomputed,
                choices=(0,),
            )
            for sequence in self.sequences
        )
        for row, result in zip(rows, self.engine.forward(Batch(rows=rows)), strict=True):
            row.sequence.num_computed += row.num_new
            row.sequence.output_ids.append(result.tokens[0].token_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Tokens per second of both, and engine / bare."""

    case: str
    engine: float
    bare: float

    @property
    def ratio(self) -> float:
        return self.engine / self.bare


def measure(
    bare: BareLoop, engine: Engine, *, batch: int, length: int, num_steps: int, rounds: int
) -> Figure:
    """`num_steps` 0 times the prefill of `length`; else that many decode steps behind it."""
    generator = torch.Generator().manual_seed(batch * length)
    ids = torch.randint(3, bare.shape.vocab_size, (batch, length), generator=generator)
    slab = bare.slab(batch, length + num_steps + 1)
    times: dict[str, list[float]] = {"engine": [], "bare": []}
    for _ in range(rounds + 1):
        times["bare"].append(_time_bare(bare, ids, slab, num_steps))
        times["engine"].append(_time_engine(engine, ids.tolist(), num_steps))
    num_tokens = batch * (num_steps or length)
    rates = {name: num_tokens / statistics.median(taken[1:]) for name, taken in times.items()}
    kind = f"decode batch {batch} behind {length}" if num_steps else f"prefill {batch}x{length}"
    return Figure(case=kind, **rates)


def _time_bare(bare: BareLoop, ids: Tensor, slab: Tensor, num_steps: int) -> float:
    tokens = ids[:, :0]

    def prefill() -> None:
        nonlocal tokens
        tokens = bare.step(ids, 0, slab)

    def decode() -> None:
        nonlocal tokens
        for step in range(num_steps):
            tokens = bare.step(tokens[:, None], ids.shape[1] + step, slab)

    return _time_second(prefill, decode) if num_steps else _time(prefill)


def _time_engine(engine: Engine, prompts: list[list[int]], num_steps: int) -> float:
    run = PagedRun(engine, prompts, num_steps + 1)
    if not num_steps:
        return _time(run.step)

    def decode() -> None:
        for _ in range(num_steps):
            run.step()

    return _time_second(run.step, decode)


def _time(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _time_second(first: Callable[[], object], second: Callable[[], object]) -> float:
    first()
    return _time(second)


def run(threads: int, rounds: int, num_steps: int) -> list[Figure]:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        directory = Path(scratch)
        write_random_llama(directory, SHAPE_54M)
        config = EngineConfig(
            checkpoint=directory, num_blocks=1024, block_size=BLOCK_SIZE, num_threads=threads
        )
        engine = Engine(load_spec(directory), config)
        bare = BareLoop(_load(directory), SHAPE_54M)
        cases = [(1, 512, 0), (4, 512, 0), (16, 128, num_steps), (1, 128, num_steps)]
        cases += [(16, 512, num_steps), (1, 512, num_steps)]
        return [
            measure(bare, engine, batch=batch, length=length, num_steps=steps, rounds=rounds)
            for batch, length, steps in cases
        ]


def _load(directory: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=32, help="decode steps a round")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    figures = run(args.threads, args.rounds, args.steps)
    if load + args.threads > (os.cpu_count() or 1) + 0.5:
        print(f"The machine was busy (load {load:.1f}): the ratios mean little.", file=sys.stderr)
    print(
        f"{'case':<28}{'engine':>10}{'bare':>10}{'ratio':>8}   (tokens/s, {args.threads} threads)"
    )
    for figure in figures:
        print(f"{figure.case:<28}{figure.engine:>10.0f}{figure.bare:>10.0f}{figure.ratio:>8.2f}")
    if args.json:
        found = [{**asdict(figure), "ratio": figure.ratio} for figure in figures]
        document = {
            "threads": args.threads,
            "torch": torch.__version__,
            "load": load,
            "figures": found,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
