"""The engine alone against a bare torch loop, vLLM's CPU build and llama.cpp, in one run: prefill
and decode on a 54 M Llama.

    python -m bench.engine [--threads 2] [--rounds 7] [--weights] [--make-peers] [--json FILE]

All take turns in every round, so that a busy machine slows all; figures are medians. `read` is
what decode cannot pass: it only sums what a step must read of the weights. Peers have environments
of their own: `--make-peers` makes them (3 GB, a quarter of an hour); one without is left out.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from bench import llama_cpp, machine, vllm_cpu
from bench.peers import EnginePeer, PeerUnavailable
from bench.random_llama import SHAPE_54M, LlamaShape, write_random_llama
from cluster.measurements import Measurements
from cluster.process import cache_folder
from cluster.types import BlockId, ComputeRequest, GenerationParams, SamplingParams
from engine.batch import Batch, BatchRow
from engine.checkpoint import load_spec
from engine.config import EngineConfig, Weights
from engine.engine import Engine
from engine.sequence import Sequence

BLOCK_SIZE = 16
CASES = [(1, 128, False), (1, 512, False), (4, 512, False), (1, 2048, False), (1, 512, True)]
CASES += [(4, 512, True), (16, 128, True), (16, 512, True), (64, 128, True), (64, 512, True)]
COMPARED_TOKENS = 16
NARROW: tuple[Weights, ...] = ("bfloat16", "int8")
PEERS = (
    ("vllm-cpu", vllm_cpu.start, vllm_cpu.make),
    ("llama-cpp", llama_cpp.start, llama_cpp.make),
)

Run = Callable[[list[list[int]], int], float]  # seconds of prompts, or of steps behind them


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
class Rates:
    """Tokens per second of each."""

    case: str
    rates: Mapping[str, float]

    def ratio(self, peer: str) -> float:
        return self.rates["engine"] / self.rates[peer]


def measure(
    ways: Mapping[str, Run], *, batch: int, length: int, num_steps: int, rounds: int
) -> Rates:
    """`num_steps` 0 times the prefill of `length`; else that many decode steps behind it."""
    generator = torch.Generator().manual_seed(batch * length)
    ids = torch.randint(3, SHAPE_54M.vocab_size, (batch, length), generator=generator).tolist()
    times: dict[str, list[float]] = {name: [] for name in ways}
    if not num_steps:  # which is bound by what it computes
        del times["read"]
    for _ in range(rounds + 1):
        for name in times:
            times[name].append(ways[name](ids, num_steps))
    num_tokens = batch * (num_steps or length)
    rates = {name: num_tokens / statistics.median(taken[1:]) for name, taken in times.items()}
    kind = f"decode batch {batch} behind {length}" if num_steps else f"prefill {batch}x{length}"
    return Rates(case=kind, rates=rates)


def time_bare(bare: BareLoop, prompts: list[list[int]], num_steps: int) -> float:
    ids = torch.tensor(prompts)
    slab = bare.slab(len(prompts), ids.shape[1] + num_steps + 1)
    tokens = ids[:, :0]

    def prefill() -> None:
        nonlocal tokens
        tokens = bare.step(ids, 0, slab)

    def decode() -> None:
        nonlocal tokens
        for step in range(num_steps):
            tokens = bare.step(tokens[:, None], ids.shape[1] + step, slab)

    return _time_second(prefill, decode) if num_steps else _time(prefill)


def time_engine(engine: Engine, prompts: list[list[int]], num_steps: int) -> float:
    run = PagedRun(engine, prompts, num_steps + 1)
    if not num_steps:
        return _time(run.step)

    def decode() -> None:
        for _ in range(num_steps):
            run.step()

    return _time_second(run.step, decode)


def time_read(matrices: list[Tensor], prompts: list[list[int]], num_steps: int) -> float:
    def read() -> None:
        for _ in range(num_steps):
            for matrix in matrices:
                matrix.sum()

    return _time(read)


def num_equal(engine: Engine, peer: EnginePeer) -> int:
    """Of `COMPARED_TOKENS`, greedy, behind one prompt: how many a peer says, too."""
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(3, SHAPE_54M.vocab_size, (100,), generator=generator).tolist()
    run = PagedRun(engine, [prompt], COMPARED_TOKENS)
    for _ in range(COMPARED_TOKENS):
        run.step()
    [theirs] = peer.tokens([prompt], COMPARED_TOKENS)
    return sum(map(int.__eq__, run.sequences[0].output_ids, theirs))


def _time(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _time_second(first: Callable[[], object], second: Callable[[], object]) -> float:
    first()
    return _time(second)


@dataclass(slots=True, kw_only=True, eq=False)
class EngineFindings:
    figures: list[Rates]
    notes: list[str]  # on the run as a whole


def run(
    threads: int,
    rounds: int,
    num_steps: int,
    num_cases: int = len(CASES),
    *,
    has_narrow: bool = False,
    makes_peers: bool,
) -> EngineFindings:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode(), ExitStack() as open_:
        directory = Path(scratch)
        write_random_llama(directory, SHAPE_54M)
        config = EngineConfig(
            checkpoint=directory, num_blocks=2560, block_size=BLOCK_SIZE, num_threads=threads
        )
        measurements = Measurements(cache_folder())
        engine = Engine(load_spec(directory), config, measurements=measurements)
        tensors = _load(directory)
        bare = BareLoop(tensors, SHAPE_54M)
        ways: dict[str, Run] = {
            "engine": partial(time_engine, engine),
            "bare": partial(time_bare, bare),
        }
        notes = [f"{name}: {choice}" for name, choice in measurements.choices.items()]
        for kept in NARROW if has_narrow else ():
            narrow = Engine(load_spec(directory), replace(config, weights=kept))
            ways[kept] = partial(time_engine, narrow)
        for name, start, make in PEERS:
            try:
                if makes_peers:
                    make()
                peer = open_.enter_context(start(directory, threads=threads))
            except PeerUnavailable as error:
                notes.append(f"{name} is left out: {error}.")
                continue
            ways[name] = peer.run
            equal = num_equal(engine, peer)
            notes.append(f"{name}: {equal} of {COMPARED_TOKENS} greedy tokens are the same")
        matrices = [
            each for name, each in tensors.items() if each.dim() == 2 and "embed" not in name
        ]
        ways["read"] = partial(time_read, matrices)
        return EngineFindings(
            figures=list(_figures(ways, rounds, num_steps, num_cases)), notes=notes
        )


def _figures(
    ways: Mapping[str, Run], rounds: int, num_steps: int, num_cases: int
) -> Iterator[Rates]:
    for batch, length, decodes in CASES[:num_cases]:
        steps = num_steps if decodes else 0
        figure = measure(ways, batch=batch, length=length, num_steps=steps, rounds=rounds)
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in figure.rates.items())
        print(f"{figure.case}: {rates} tokens/s", file=sys.stderr, flush=True)
        yield figure


def _load(directory: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def show(findings: EngineFindings) -> None:
    """Rates in tokens a second, and the engine's as a multiple of each peer's."""
    print(*findings.notes, "", sep="\n")
    names = list(dict.fromkeys(name for figure in findings.figures for name in figure.rates))
    print(
        f"{'case':<28}", *(f"{name:>10}" for name in names), *(f"{'/ ' + n:>12}" for n in names[1:])
    )
    for figure in findings.figures:
        known = figure.rates
        rates = (f"{known[name]:>10.0f}" if name in known else " " * 10 for name in names)
        ratios = (f"{figure.ratio(n):>12.2f}" if n in known else " " * 12 for n in names[1:])
        print(f"{figure.case:<28}", *rates, *ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=32, help="decode steps a round")
    parser.add_argument("--weights", action="store_true", help="narrower weights, too")
    parser.add_argument("--make-peers", action="store_true", help="make their environments first")
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first so many")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    about, load = machine.describe(), os.getloadavg()[0]
    print(about)
    findings = run(
        args.threads,
        args.rounds,
        args.steps,
        args.cases,
        has_narrow=args.weights,
        makes_peers=args.make_peers,
    )
    if load + args.threads > (os.cpu_count() or 1) + 0.5:
        print(f"The machine was busy (load {load:.1f}): the ratios mean little.", file=sys.stderr)
    show(findings)
    if args.json:
        document = {
            "about": about,
            "threads": args.threads,
            "notes": findings.notes,
            "figures": [{"case": each.case, **each.rates} for each in findings.figures],
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
