"""How a request may go through a cluster of real engines, and how it is sent that way."""

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.types import KvLayout
from engine.checkpoint import load_spec
from engine.config import EngineConfig
from engine.engine import Engine
from penstock.v1 import inference_pb2 as pb
from tests.checkpoints import VOCAB_SIZE, checkpoint
from tests.router.cluster_of_fakes import Answer
from tests.workers.local_cluster import LocalCluster

torch.set_num_threads(1)

HEAD = [2 + i % (VOCAB_SIZE - 2) for i in range(48)]  # what cached prompts share


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How requests go through the cluster."""

    remote: bool = True
    cached: bool = False
    block_size: int = 16
    chunk: int = 512
    batch: int = 16
    small: bool = False  # so little memory that sequences are put back
    temperature: float = 0.0

    @property
    def max_tokens(self) -> int:
        """Answers that outgrow their first blocks, where they shall run out of memory."""
        return 40 if self.small else 12

    def __str__(self) -> str:
        words = [
            "remote" if self.remote else "local",
            "cached" if self.cached else "cold",
            f"block{self.block_size}",
            f"chunk{self.chunk}",
            f"batch{self.batch}",
        ]
        return "-".join(words + ["small"] * self.small)


def torch_engine(family: str, layout: KvLayout, buffer: memoryview) -> Engine:
    config = EngineConfig(
        checkpoint=checkpoint(family),
        num_blocks=layout.num_blocks,
        block_size=layout.block_size,
        num_threads=1,
    )
    return Engine(load_spec(checkpoint(family)), config, buffer)


def cluster_of(family: str, way: Way, directory: Path) -> LocalCluster:
    settings: dict[str, Any] = {
        "block_size": way.block_size,
        "max_batch_tokens": way.chunk,
        "max_sequences": way.batch,
        "num_blocks": (256 if way.small else 12_000) // way.block_size,
    }
    return LocalCluster(
        checkpoint(family),
        directory,
        decode=[settings],
        prefill=[{**settings, "num_blocks": 8_000 // way.block_size}] if way.remote else [],
        make_engine=partial(torch_engine, family),
        layout=load_spec(checkpoint(family)).kv_layout,
        disaggregate="always" if way.remote else "never",
    )


def draw_prompts(seed: int, num: int, *, cached: bool) -> list[list[int]]:
    rng = random.Random(seed)
    head = HEAD if cached else []
    lengths = [rng.choice([1, 2, 15, 16, 17, 31, 33, rng.randrange(3, 150)]) for _ in range(num)]
    return [head + [rng.randrange(2, VOCAB_SIZE) for _ in range(length)] for length in lengths]


async def ask(cluster: LocalCluster, prompt: list[int], way: Way, seed: int) -> list[int]:
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt),
        sampling=pb.SamplingParams(temperature=way.temperature, seed=seed),
        stop=pb.LengthAndStop(max_tokens=way.max_tokens, ignore_eos=True),
    )
    answer: Answer = await cluster.generate(request, timeout_s=120)
    assert answer.is_complete
    return answer.token_ids
