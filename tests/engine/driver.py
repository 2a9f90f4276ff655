"""A scheduler of forty lines for engine tests: chunks, mixed batches, scattered blocks."""

import random
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from pathlib import Path

from cluster.types import (
    BlockId,
    ComputeRequest,
    GenerationParams,
    SampledToken,
    SamplingParams,
    TokenLogprob,
)
from engine.batch import Batch, BatchRow
from engine.checkpoint import load_spec
from engine.config import AttentionForm, EngineConfig
from engine.engine import Engine
from engine.layers.linear import Product
from engine.sequence import Sequence

GREEDY = SamplingParams(seed=0, temperature=0.0)


def make_engine(
    checkpoint: Path,
    *,
    num_blocks: int = 512,
    block_size: int = 16,
    product: Product | None = None,
    attention: AttentionForm = "auto",
) -> Engine:
    config = EngineConfig(
        checkpoint=checkpoint,
        num_blocks=num_blocks,
        block_size=block_size,
        num_threads=1,
        product=product,
        attention=attention,
    )
    return Engine(load_spec(checkpoint), config)


def make_sequence(
    prompt_ids: Ids[int],
    sampling: SamplingParams = GREEDY,
    *,
    max_tokens: int = 16,
    emitted: tuple[int, ...] = (),
    choice: int = 0,
) -> Sequence:
    params = GenerationParams(sampling=sampling, max_tokens=max_tokens, num_choices=choice + 1)
    request = ComputeRequest(
        request_id="r",
        prompt_ids=list(prompt_ids),
        params=params,
        hash_key=bytes(32),
        emitted=((),) * choice + (emitted,),
    )
    return Sequence(request, choice=choice)


@dataclass(slots=True, eq=False)
class Driver:
    """Runs sequences to their end; every step mixes decode rows and prompt chunks."""

    engine: Engine
    budget: int = 512
    max_batch: int = 16
    seed: int | None = None  # scatters the blocks; None gives each sequence consecutive ones
    wants_prompt_logprobs: bool = False
    num_mixed: int = 0  # steps with both kinds of rows
    sampled: dict[int, list[SampledToken]] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    _free: list[BlockId] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free = [BlockId(block) for block in range(self.engine.layout.num_blocks)]
        if self.seed is not None:
            random.Random(self.seed).shuffle(self._free)

    def run(self, sequences: list[Sequence]) -> list[list[int]]:
        """The tokens that each sequence gained."""
        waiting = list(enumerate(sequences))
        running: list[tuple[int, Sequence]] = []
        while waiting or running:
            while waiting and len(running) < self.max_batch:
                running.append(waiting.pop(0))
                self._reserve(running[-1][1])
            self._step(running)
            for entry in [e for e in running if self._is_done(*e)]:
                running.remove(entry)
                self._free += entry[1].block_table
        return [[t.token_id for t in self.sampled[i]] for i in range(len(sequences))]

    def _is_done(self, index: int, sequence: Sequence) -> bool:
        return len(self.sampled.get(index, ())) >= sequence.params.max_tokens

    def _reserve(self, sequence: Sequence) -> None:
        num_tokens = sequence.num_tokens + sequence.params.max_tokens
        num_blocks = -(-num_tokens // self.engine.layout.block_size)
        if self.seed is None:
            self._free.sort()
        # A table that is there already is a cached prefix.
        self._free = [block for block in self._free if block not in sequence.block_table]
        num_missing = num_blocks - len(sequence.block_table)
        sequence.block_table = sequence.block_table + self._free[:num_missing]
        del self._free[:num_missing]

    def _step(self, running: list[tuple[int, Sequence]]) -> None:
        rows, owners, budget = [], [], self.budget
        for index, sequence in sorted(running, key=lambda entry: entry[1].num_uncomputed):
            num_new = min(sequence.num_uncomputed, budget)
            if num_new == 0:
                continue
            budget -= num_new
            is_last = num_new == sequence.num_uncomputed
            rows.append(
                BatchRow(
                    sequence=sequence,
                    start=sequence.num_computed,
                    num_new=num_new,
                    choices=(sequence.choice,) if is_last else (),
                    want_prompt_logprobs=self.wants_prompt_logprobs
                    and sequence.num_computed < len(sequence.prompt_ids),
                )
            )
            owners.append(index)
        self.num_mixed += len({row.num_new == 1 for row in rows}) == 2
        results = self.engine.forward(Batch(rows=tuple(rows)))
        for index, row, result in zip(owners, rows, results, strict=True):
            row.sequence.num_computed += row.num_new
            self.prompt_logprobs.setdefault(index, []).extend(result.prompt_logprobs)
            for token in result.tokens:
                self.sampled.setdefault(index, []).append(token)
                row.sequence.output_ids.append(token.token_id)
