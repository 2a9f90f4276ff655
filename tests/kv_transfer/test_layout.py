"""Bytes moved by spans equal those moved by plain indexing, for every geometry."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.types import KvLayout
from kv_transfer.geometry import pair_spans, spans
from kv_transfer.span_copy import SpanCopier


def layout_of(block_size: int, num_blocks: int, **changes: int | str) -> KvLayout:
    geometry = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 3, "dtype": "float16"} | changes
    return KvLayout(block_size=block_size, num_blocks=num_blocks, **geometry)  # type: ignore[arg-type]


def pool_of(layout: KvLayout, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, layout.pool_bytes, dtype=np.uint8)


def planes(layout: KvLayout, pool: np.ndarray) -> np.ndarray:
    """[layer, K or V, block, slot, byte]"""
    return pool.reshape(layout.num_layers, 2, layout.num_blocks, layout.block_size, -1)


@st.composite
def moves(draw: st.DrawFn) -> tuple[KvLayout, list[int], KvLayout, list[int], int, int]:
    ends: list[tuple[KvLayout, list[int]]] = []
    for _ in range(2):
        layout = layout_of(draw(st.sampled_from([1, 2, 3, 8, 16])), draw(st.integers(1, 12)))
        every = list(range(layout.num_blocks))
        blocks = draw(st.one_of(st.just(every), st.permutations(every)))
        ends.append((layout, blocks))
    room = min(layout.num_blocks * layout.block_size for layout, _ in ends)
    start, stop = sorted((draw(st.integers(0, room)), draw(st.integers(0, room))))
    return *ends[0], *ends[1], start, stop


@pytest.mark.slow
@given(moves(), st.integers(0, 1))
@settings(max_examples=300, deadline=None)
def test_a_move_equals_a_move_token_by_token(
    move: tuple[KvLayout, list[int], KvLayout, list[int], int, int], layer: int
) -> None:
    source_layout, source_blocks, layout, blocks, start, stop = move
    source, moved = pool_of(source_layout, 1), pool_of(layout, 2)
    expected = moved.copy()
    for token in range(start, stop):
        block, slot = divmod(token, source_layout.block_size)
        values = planes(source_layout, source)[layer, :, source_blocks[block], slot]
        block, slot = divmod(token, layout.block_size)
        planes(layout, expected)[layer, :, blocks[block], slot] = values

    pairs = pair_spans(source_layout, source_blocks, layout, blocks, layer, start, stop)
    digest = SpanCopier().copy(source, moved, pairs, digest=True)

    assert np.array_equal(moved, expected)
    assert pairs.num_bytes == 2 * (stop - start) * layout.slot_bytes
    there = SpanCopier().digest(moved, spans(layout, layer, blocks, start, stop))
    assert digest == there, "the digest depends on content, not on blocks"


def test_adjacent_blocks_are_one_span() -> None:
    layout = layout_of(4, 16)
    assert len(list(spans(layout, 1, [3, 4, 5, 9], 2, 16))) == 2 * 2
    assert [one.num_bytes for one in spans(layout, 0, [3, 4, 5, 9], 2, 16)][:2] == [120, 48]


@pytest.mark.parametrize(
    ("blocks", "start", "stop"), [([0, 16], 0, 8), ([-1], 0, 1), ([0], 0, 5), ([0], 3, 2)]
)
def test_what_lies_outside_the_pool_is_refused(blocks: list[int], start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=r"block"):
        spans(layout_of(4, 16), 0, blocks, start, stop)
