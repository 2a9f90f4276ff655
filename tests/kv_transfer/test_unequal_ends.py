"""Pools that differ in whatever may differ: what belongs into the receiver's lands there, once,
and nothing else does."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import DigestMismatch, TransferFailed
from cluster.types import DTYPE_BYTES, KvLayout
from kv_transfer.geometry import BlockTable, PairedTables
from kv_transfer.incoming import ReservationTable
from kv_transfer.memory_transport import MemoryNetwork
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.shards import routes, shards
from kv_transfer.span_copy import SpanCopier
from kv_transfer.transfer import RemoteProtocolError
from tests.kv_transfer.shard_rig import (
    LocalWriters,
    Prompt,
    check,
    hand_over,
    open_in,
    worker_of,
)

GQA = KvLayout(num_layers=2, num_blocks=24, block_size=8, num_kv_heads=4, head_dim=8)
MLA = replace(GQA, num_planes=1, num_kv_heads=1, head_dim=24)
WINDOWED = replace(GQA, num_layers=3, windows=(40, None, 9))
PROMPT = Prompt(21, 147)


@dataclass(frozen=True)
class Move:
    source: KvLayout
    source_blocks: list[int]
    destination: KvLayout
    blocks: list[int]
    wire_dtype: str | None
    start: int
    stop: int


@st.composite
def moves(draw: st.DrawFn) -> Move:
    num_planes = draw(st.integers(1, 2))
    num_heads = draw(st.integers(1, 5)) if num_planes == 2 else 1
    head_dim = draw(st.integers(1, 4))
    shared = draw(st.integers(0, num_heads - 1))  # a head that both ends hold
    ends: list[tuple[KvLayout, list[int]]] = []
    for _ in range(2):
        first, last = draw(st.integers(0, shared)), draw(st.integers(shared, num_heads - 1))
        layout = KvLayout(
            num_layers=2,
            num_blocks=draw(st.integers(1, 8)),
            block_size=draw(st.sampled_from([1, 2, 3, 8])),
            num_kv_heads=last + 1 - first,
            head_dim=head_dim,
            dtype=draw(st.sampled_from(sorted(DTYPE_BYTES))),
            num_planes=num_planes,
            first_head=first,
            total_heads=num_heads,
        )
        every = list(range(layout.num_blocks))
        ends.append((layout, draw(st.just(every) | st.permutations(every))))
    room = min(layout.num_blocks * layout.block_size for layout, _ in ends)
    start, stop = sorted((draw(st.integers(0, room)), draw(st.integers(0, room))))
    lossless = ends[0][0].dtype == ends[1][0].dtype or ends[1][0].dtype == "float32"
    wire_dtypes = ["bfloat16", "float32", "int8", *([None] if lossless else [])]
    return Move(*ends[0], *ends[1], draw(st.sampled_from(wire_dtypes)), start, stop)


def rows(layout: KvLayout, pool: np.ndarray) -> np.ndarray:
    """[layer, plane, block, slot, head, byte]: a view"""
    shape = (layout.num_layers, layout.num_planes, layout.num_blocks, layout.block_size)
    return pool.reshape(*shape, layout.num_kv_heads, layout.head_bytes)


def pool_of(layout: KvLayout, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(layout.pool_bytes).astype(np.float16)
    return values.view(np.uint8)[: layout.pool_bytes].copy()  # finite in every dtype


@pytest.mark.slow
@given(move=moves(), layer=st.integers(0, 1))
@settings(max_examples=300, deadline=None)
def test_every_byte_of_the_range_is_written_once_with_its_source(move: Move, layer: int) -> None:
    source, moved = pool_of(move.source, 1), pool_of(move.destination, 2)
    table = BlockTable(move.destination, move.blocks)
    paired = PairedTables(
        BlockTable(move.source, move.source_blocks), table, wire_dtype=move.wire_dtype
    )
    pairs = paired.pairs(layer, move.start, move.stop)
    conversion, heads = pairs.conversion, paired.share.heads

    expected = moved.copy()
    for token in range(move.start, move.stop):
        for head in heads:
            block, slot = divmod(token, move.source.block_size)
            here = (move.source_blocks[block], slot, head - move.source.first_head)
            data = rows(move.source, source)[(layer, slice(None), *here)].reshape(-1)
            if conversion is not None:
                data = conversion.decode(conversion.encode(data.copy()))
            block, slot = divmod(token, move.destination.block_size)
            there = (move.blocks[block], slot, head - move.destination.first_head)
            target = rows(move.destination, expected)[(layer, slice(None), *there)]
            target[:] = data.reshape(target.shape)

    num_writes = np.zeros(move.destination.pool_bytes, dtype=np.int64)
    for offset, size in pairs.destination_spans:
        num_writes[offset : offset + size] += 1
    num_rows = (move.stop - move.start) * len(heads) * move.source.num_planes
    assert num_writes.max(initial=0) <= 1
    assert num_writes.sum() == num_rows * move.destination.head_bytes
    assert pairs.num_bytes == num_rows * move.source.head_bytes

    digest = SpanCopier().copy(source, moved, pairs, digest=True)
    assert np.array_equal(moved, expected)
    there_now = table.spans(layer, move.start, move.stop, heads)
    assert digest == SpanCopier().digest(moved, there_now), "it depends on content, not on blocks"


@pytest.mark.parametrize("num_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("there", [1, 2, 4, 8])
@pytest.mark.parametrize("here", [1, 2, 4, 8])
def test_each_head_reaches_each_receiving_rank_once(num_heads: int, there: int, here: int) -> None:
    layout = replace(GQA, num_kv_heads=num_heads)
    sources, destinations = shards(layout, there), shards(layout, here)
    for ranks in (sources, destinations):
        assert {head for rank in ranks for head in rank.heads} == set(range(num_heads))
        assert len({rank.num_kv_heads for rank in ranks}) == 1
    arriving = sorted(
        (route.destination, head)
        for route in routes(sources, destinations)
        for head in set(sources[route.source].heads) & set(destinations[route.destination].heads)
    )
    assert arriving == [(to, head) for to, rank in enumerate(destinations) for head in rank.heads]
    writers = {route.source for route in routes(sources, destinations)}
    assert len(writers) >= min(there, here, num_heads), "work is shared"


@pytest.mark.parametrize("degree", [0, 3, 5])
def test_heads_that_do_not_divide_are_refused(degree: int) -> None:
    with pytest.raises(ValueError, match="4 KV heads cannot be shared"):
        shards(GQA, degree)


COVERING = [
    # Every pair of a model with each of the others, and every direction of each once.
    (GQA, "float32", "float32", None, 1, 2),
    (GQA, "float32", "bfloat16", "bfloat16", 4, 1),
    (GQA, "bfloat16", "float32", None, 2, 4),
    (GQA, "float32", "float32", "int8", 2, 2),
    (MLA, "float32", "float32", None, 2, 1),
    (MLA, "bfloat16", "bfloat16", "int8", 1, 4),
    (MLA, "float16", "float32", None, 4, 2),
    (WINDOWED, "float32", "float32", "bfloat16", 4, 2),
    (WINDOWED, "bfloat16", "bfloat16", None, 1, 4),
    (WINDOWED, "float32", "float32", None, 1, 1),
]


@pytest.mark.parametrize("sizes", [(8, 32), (16, 8)], ids=str)
@pytest.mark.parametrize(("model", "here", "there", "wire_dtype", "num", "num_there"), COVERING)
async def test_a_hand_over_fills_every_rank_with_its_share(
    model: KvLayout,
    here: str,
    there: str,
    wire_dtype: str | None,
    num: int,
    num_there: int,
    sizes: tuple[int, int],
) -> None:
    ends = [
        replace(model, block_size=size, dtype=one)
        for size, one in zip(sizes, (here, there), strict=True)
    ]
    source, destination = worker_of(ends[0], num, PROMPT), worker_of(ends[1], num_there, PROMPT)
    open_pool = partial(open_in, MemoryNetwork())
    contents = await hand_over(
        [LocalWriters(open_pool)], open_pool, source, destination, PROMPT, wire_dtype
    )
    check(contents, source, PROMPT, wire_dtype)


async def test_a_writer_of_other_heads_or_numbers_is_refused_before_bytes_move() -> None:
    network = MemoryNetwork()
    first, second = shards(GQA, 2)
    pool, _ = open_in(network, "receiver", first.pool_bytes)
    table = ReservationTable(pool, first, on_release=lambda blocks: None)
    with pytest.raises(TransferFailed, match=r"heads: range\(2, 4\) and range\(0, 2\)"):
        table.share_of(second)
    with pytest.raises(TransferFailed, match="num_planes: 1 and 2"):
        table.share_of(replace(first, num_planes=1))
    with pytest.raises(TransferFailed, match="windows"):
        table.share_of(replace(first, windows=(8, 8)))
    narrow = ReservationTable(pool, replace(first, dtype="bfloat16"), on_release=lambda b: None)
    with pytest.raises(TransferFailed, match="float32 does not fit bfloat16"):
        narrow.share_of(first)
    for one in (table, narrow):
        one.close()


@pytest.mark.parametrize("wire_dtype", [None, "int8"])
@pytest.mark.parametrize("head", range(4))
async def test_the_digest_is_of_what_this_writer_had_to_bring(
    head: int, wire_dtype: str | None
) -> None:
    """Of the receiver's four heads the writer holds the third and the fourth."""
    network = MemoryNetwork()
    mine = shards(GQA, 2)[1]
    pool, writer = open_in(network, "writer", mine.pool_bytes)
    there, receiver = open_in(network, "receiver", GQA.pool_bytes)
    pool.memory[:] = pool_of(mine, 3)
    table = ReservationTable(there, GQA, on_release=lambda blocks: None)
    outgoing = OutgoingTransfer(layout=mine, blocks=[4, 1, 2], num_tokens=20)
    outgoing.computed_all(20)
    peer, share = await receiver.connect(writer.address), table.share_of(mine, wire_dtype)
    with table.reserve([9, 3, 7], 0, 20, lease_s=9, peer=peer, share=share) as reservation:
        outgoing.grant(reservation.grant, await writer.connect(receiver.address), GQA)
        written = await outgoing.landed()
        assert reservation.is_lossless is (wire_dtype is None)
        rows(GQA, there.memory)[1, 0, 3, 5, head, 2] ^= 1
        if head in mine.heads:
            with pytest.raises(DigestMismatch, match=r"layer 1, tokens \[0, 20\) differ"):
                await reservation.verify(written)
        else:
            await reservation.verify(written)
    table.close()
    writer.close()
    receiver.close()


async def test_a_source_that_lacks_what_a_window_shows_writes_nothing() -> None:
    network = MemoryNetwork()
    layout = replace(WINDOWED, windows=(40, None, 40))
    pool, writer = open_in(network, "writer", layout.pool_bytes)
    there, receiver = open_in(network, "receiver", layout.pool_bytes)
    pool.memory[:] = 1
    table = ReservationTable(there, layout, on_release=lambda blocks: None)
    blocks = list(range(20))
    for whole_from, may in ((96, True), (104, False)):
        outgoing = OutgoingTransfer(
            layout=layout, blocks=blocks, num_tokens=160, whole_from=whole_from
        )
        outgoing.computed_all(160)
        peer = await receiver.connect(writer.address)
        with table.reserve(blocks, 0, 160, lease_s=9, peer=peer) as reservation:
            back = await writer.connect(receiver.address)
            if may:  # from 160 on a token sees those from 121 on; runs of 32 are whole
                outgoing.grant(reservation.grant, back, layout)
                await reservation.verify(await outgoing.landed())
                assert reservation.whole_from == 96
                there.memory[:] = 0
                continue
            with pytest.raises(RemoteProtocolError, match="lack tokens before 104"):
                outgoing.grant(reservation.grant, back, layout)
            assert not there.memory.any()
    table.close()
    writer.close()
    receiver.close()
