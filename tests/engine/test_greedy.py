"""Greedy output equals the reference's, however the work is cut up and wherever the KV lies."""

import random
from itertools import product

import pytest
import torch

from cluster.types import BlockId
from engine.batch import Batch, BatchRow
from engine.checkpoint import load_spec
from engine.config import AttentionForm, EngineConfig
from engine.engine import Engine
from engine.layers.linear import Product
from engine.paged_attention import attend_plainly
from tests.checkpoints import (
    CONTEXT_LENGTH,
    FAMILIES,
    VOCAB_SIZE,
    checkpoint,
    reference_greedy,
    reference_logits,
)
from tests.engine.driver import Driver, make_engine, make_sequence
from tests.engine.greedy import count_mismatches, draw_prompts


def assert_near(
    family: str, prompts: list[list[int]], outputs: list[list[int]], tolerance: float
) -> None:
    """No token is further from the reference's best than `tolerance` deviations."""
    for prompt, output in zip(prompts, outputs, strict=True):
        logits = reference_logits(checkpoint(family), prompt + output)[len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
        assert (logits.max(-1).values - chosen).max() < tolerance * logits.std()


def check(
    family: str,
    *,
    block_size: int = 16,
    budget: int = 512,
    max_batch: int = 16,
    seed: int | None = 1,
    num: int = 8,
    max_tokens: int = 8,
    product: Product | None = None,
    attention: AttentionForm = "auto",
) -> Driver:
    prompts = draw_prompts(seed or 0, num)
    engine = make_engine(
        checkpoint(family), block_size=block_size, product=product, attention=attention
    )
    driver = Driver(engine, budget=budget, max_batch=max_batch, seed=seed)
    outputs = driver.run([make_sequence(prompt, max_tokens=max_tokens) for prompt in prompts])
    num_mismatches = count_mismatches(family, prompts, outputs)
    num_tokens = sum(map(len, outputs))
    print(f"{family}: {num_mismatches} close mismatches in {num_tokens} tokens")
    assert num_mismatches <= num_tokens / 10_000
    return driver


@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_mixed_batches_on_scattered_blocks_equal_the_reference(family: str) -> None:
    driver = check(family, budget=32)
    assert driver.num_mixed > 0


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_alone_with_whole_prompts_equals_what_the_reference_generates(family: str) -> None:
    prompt = draw_prompts(7, 1)[0]
    driver = Driver(make_engine(checkpoint(family)), max_batch=1)
    output = driver.run([make_sequence(prompt, max_tokens=24)])[0]
    assert output == reference_greedy(checkpoint(family), prompt, 24)


GRID = list(product(("llama", "qwen2", "qwen3", "mistral"), (8, 16, 32), (32, 512), (1, 16)))


@pytest.mark.prove
@pytest.mark.parametrize(("family", "block_size", "budget", "max_batch"), GRID)
def test_every_cut_equals_the_reference(
    family: str, block_size: int, budget: int, max_batch: int
) -> None:
    cut = {"block_size": block_size, "budget": budget, "max_batch": max_batch}
    check(family, **cut, seed=None, num=24, max_tokens=16)
    check(family, **cut, seed=3, num=24, max_tokens=16)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_up_to_the_last_position_of_the_context_equals_the_reference(family: str) -> None:
    rng = random.Random(6)
    prompts = [[rng.randrange(VOCAB_SIZE) for _ in range(n)] for n in (CONTEXT_LENGTH - 12, 700)]
    driver = Driver(make_engine(checkpoint(family)), budget=300, seed=5)
    outputs = driver.run([make_sequence(prompt, max_tokens=12) for prompt in prompts])
    assert count_mismatches(family, prompts, outputs) == 0


@pytest.mark.parametrize("family", ["llama-mqa", "qwen3", "mistral"])
def test_the_forms_used_off_the_cpu_equal_the_reference(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.paged_attention._attend", attend_plainly)
    check(family, budget=32, product=Product.TRANSPOSED, attention="torch")


@pytest.mark.parametrize("form", ["native", "torch"])
@pytest.mark.parametrize("family", ["llama-mqa", "qwen2", "qwen3-window"])
def test_every_form_of_attention_gives_the_reference(family: str, form: AttentionForm) -> None:
    check(family, budget=32, attention=form)


@pytest.mark.parametrize("kind", [Product.STORED, Product.PACKED])
@pytest.mark.parametrize("family", ["qwen2", "llama-tied"])
def test_every_product_gives_the_reference(family: str, kind: Product) -> None:
    check(family, budget=32, product=kind)


def test_workers_that_chose_different_products_give_the_reference_together() -> None:
    """What one computed, the next attends to, as after a hand-over."""
    buffer, prompts = None, draw_prompts(11, 6)
    outputs: list[list[int]] = [[] for _ in prompts]
    tables: list[list[BlockId]] = [[] for _ in prompts]
    for turn, kind in enumerate([*Product] * 2):
        config = EngineConfig(
            checkpoint=checkpoint("qwen2"),
            num_blocks=128,
            block_size=16,
            num_threads=1,
            product=kind,
        )
        spec = load_spec(config.checkpoint)
        layout = spec.kv_layout(num_blocks=128, block_size=16, dtype="float32")
        buffer = buffer or bytearray(layout.pool_bytes)
        engine = Engine(spec, config, buffer)
        for number, prompt in enumerate(prompts):
            sequence = make_sequence(prompt, emitted=tuple(outputs[number]))
            tables[number] = sequence.block_table = [
                BlockId(number * 16 + block) for block in range(16)
            ]
            start = 0 if turn == 0 else len(prompt) + turn - 1
            num_new = len(prompt) if turn == 0 else 1
            row = BatchRow(sequence=sequence, start=start, num_new=num_new, choices=(0,))
            result = engine.forward(Batch(rows=(row,)))[0]
            outputs[number].append(result.tokens[0].token_id)
    assert count_mismatches("qwen2", prompts, outputs) == 0


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_half_precision_stays_near_the_reference(family: str) -> None:
    config = EngineConfig(
        checkpoint=checkpoint(family),
        num_blocks=64,
        block_size=16,
        num_threads=1,
        dtype="bfloat16",
        kv_dtype="bfloat16",
    )
    engine = Engine(load_spec(config.checkpoint), config)
    assert engine.layout.dtype == "bfloat16"
    prompts = draw_prompts(3, 6, longest=60)
    outputs = Driver(engine, budget=32).run([make_sequence(p, max_tokens=6) for p in prompts])
    assert_near(family, prompts, outputs, 0.1)


def test_a_narrower_cache_gives_nearly_the_same_answers() -> None:
    config = EngineConfig(
        checkpoint=checkpoint("qwen2"),
        num_blocks=64,
        block_size=16,
        num_threads=1,
        kv_dtype="bfloat16",
    )
    prompts = draw_prompts(4, 6, longest=60)
    engine = Engine(load_spec(config.checkpoint), config)
    outputs = Driver(engine, budget=32).run([make_sequence(p, max_tokens=6) for p in prompts])
    assert_near("qwen2", prompts, outputs, 0.05)


def test_a_sequence_continued_after_emitted_tokens_gives_the_rest_of_the_same_answer() -> None:
    prompt = draw_prompts(5, 1)[0]
    engine = make_engine(checkpoint("llama"))
    whole = Driver(engine).run([make_sequence(prompt, max_tokens=12)])[0]
    resumed = make_sequence(prompt, max_tokens=7, emitted=tuple(whole[:5]))
    assert Driver(engine, seed=9).run([resumed])[0] == whole[5:]


def test_cached_blocks_of_another_sequence_serve_as_prefix() -> None:
    shared = list(range(2, 66))
    prompt = [*shared, 9, 8, 7]
    engine = make_engine(checkpoint("llama"))
    cold = Driver(engine, seed=2).run([make_sequence(prompt, max_tokens=6)])[0]
    Driver(engine).run([make_sequence(shared, max_tokens=1)])
    cached = make_sequence(prompt, max_tokens=6)
    cached.block_table, cached.num_computed = [BlockId(b) for b in range(4)], 64
    driver = Driver(engine, budget=2)
    assert driver.run([cached])[0] == cold


def test_a_copied_block_holds_the_same_context() -> None:
    prompt = list(range(2, 42))
    engine = make_engine(checkpoint("mistral"), num_blocks=16)
    sequence = make_sequence(prompt)
    sequence.block_table = [BlockId(b) for b in (0, 1, 2)]
    row = BatchRow(sequence=sequence, start=0, num_new=40, choices=(0,))
    token = engine.forward(Batch(rows=(row,)))[0].tokens[0].token_id
    sequence.output_ids.append(token)
    decode = BatchRow(sequence=sequence, start=40, num_new=1, choices=(0,))
    expected = engine.forward(Batch(rows=(decode,)))[0]
    twin = make_sequence(prompt, emitted=(token,))
    twin.block_table = [BlockId(b) for b in (0, 1, 9)]
    copied = BatchRow(sequence=twin, start=40, num_new=1, choices=(0,))
    assert engine.forward(Batch(rows=(copied,), copies=((BlockId(2), BlockId(9)),)))[0] == expected


def test_layer_done_is_called_once_for_each_layer_in_order() -> None:
    engine = make_engine(checkpoint("llama"), num_blocks=4)
    sequence = make_sequence([5, 6, 7])
    sequence.block_table = [BlockId(3)]
    layers: list[int] = []
    row = BatchRow(sequence=sequence, start=0, num_new=3)
    result = engine.forward(Batch(rows=(row,)), layers.append)
    assert layers == list(range(engine.spec.num_layers))
    assert result[0].tokens == ()
