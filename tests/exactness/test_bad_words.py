"""Bad words never appear in the answers of the shipped model, wherever a token was drawn."""

from pathlib import Path
from typing import Any

import pytest

from cluster.types import KvLayout
from engine.checkpoint import load_spec
from engine.config import EngineConfig
from engine.engine import Engine
from penstock.v1 import inference_pb2 as pb
from tests.workers.local_cluster import LocalCluster

SHIPPED = Path(__file__).parents[2] / "shipped_model" / "penstock-tiny"
QUESTIONS = ("What does len do?", "What does sorted do?")
NUM_CHOICES = 3

pytestmark = pytest.mark.slow


def engine(layout: KvLayout, buffer: memoryview) -> Engine:
    config = EngineConfig(
        checkpoint=SHIPPED,
        num_blocks=layout.num_blocks,
        block_size=layout.block_size,
        num_threads=1,
    )
    return Engine(load_spec(SHIPPED), config, buffer)


async def texts(cluster: LocalCluster, question: str, temperature: float, **more: Any) -> list[str]:
    request = pb.GenerateRequest(
        chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=question)]),
        sampling=pb.SamplingParams(temperature=temperature, seed=3, **more),
        stop=pb.LengthAndStop(max_tokens=40, min_tokens=5),
        n=NUM_CHOICES,
    )
    answer = await cluster.generate(request, timeout_s=100)
    assert answer.is_complete
    said = [""] * NUM_CHOICES
    for delta in (delta for message in answer.messages for delta in message.deltas):
        said[delta.choice] += delta.text
    return said


def words_of(texts: list[str]) -> set[str]:
    return {word.strip(".,") for text in texts for word in text.split()}


@pytest.mark.parametrize("disaggregate", ["always", "never"])
async def test_what_the_model_would_say_is_not_said(tmp_path: Path, disaggregate: str) -> None:
    """Words of one token and of several, at the beginning and after a space, in forks too."""
    settings = {"block_size": 16, "num_blocks": 128}
    async with LocalCluster(
        SHIPPED,
        tmp_path,
        decode=[settings],
        prefill=[settings] if disaggregate == "always" else [],
        make_engine=engine,
        layout=load_spec(SHIPPED).kv_layout,
        disaggregate=disaggregate,
    ) as cluster:
        for question in QUESTIONS:
            for temperature in (0.0, 1.0):
                usual = await texts(cluster, question, temperature)
                words = sorted(word for word in words_of(usual) if len(word) > 2)
                assert len(words) > 4
                others = await texts(cluster, question, temperature, bad_words=words)
                assert all(others)
                assert not words_of(others) & set(words)
