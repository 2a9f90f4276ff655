"""Blocks that lack what a sliding window hid: matched where that is behind whoever goes on, and
replaced by whole ones."""

import random

import pytest

from cluster.types import BlockId, GrainHash, first_visible
from engine.block_pool import BlockPool

SIZE = 16
WINDOW = 40


def chain(*numbers: int) -> list[GrainHash]:
    return [GrainHash(number.to_bytes(16, "big")) for number in numbers]


def stored(pool: BlockPool, hashes: list[GrainHash], whole_from: int) -> list[BlockId]:
    blocks = pool.allocate(len(hashes))
    assert blocks is not None
    pool.store(hashes, blocks, 0, whole_from=whole_from)
    pool.check()
    return blocks


@pytest.mark.parametrize(("num_tokens", "num_matched"), [(300, 13), (208, 13), (207, 12), (191, 0)])
def test_a_match_ends_where_all_that_its_end_sees_is_there(
    num_tokens: int, num_matched: int
) -> None:
    """Of 208 tokens those from 128 on came, which positions from 192 on see; a run of 32 before,
    they would see those from 96 on."""
    pool = BlockPool(64, SIZE, SIZE, window=WINDOW)
    hashes = chain(*range(13))
    assert first_visible(WINDOW, 208) == first_visible(WINDOW, 192) == 128
    assert first_visible(WINDOW, 191) == 96
    blocks = stored(pool, hashes, 128)
    assert pool.match(hashes, num_tokens) == blocks[:num_matched]


def test_a_whole_block_replaces_a_thin_one_which_is_free_when_nobody_holds_it() -> None:
    pool = BlockPool(8, SIZE, SIZE, window=WINDOW)
    hashes = chain(*range(4))
    thin = stored(pool, hashes, 64)
    pool.release(thin[2:])
    whole = stored(pool, hashes, 0)
    assert pool.match(hashes, 64) == whole
    assert pool.take_changes() is not None
    assert pool.num_held == 6, "two thin ones are held, two are free, and four are whole"
    assert pool.num_free == 2
    assert pool.whole_from(thin[:2]) == 32, "whoever holds a thin one still knows it"
    pool.release(thin[:2])
    pool.release(whole)
    pool.check()
    assert pool.num_free == 4
    assert pool.whole_from(whole) == 0


def test_a_thin_block_replaces_nothing() -> None:
    pool = BlockPool(8, SIZE, SIZE, window=WINDOW)
    hashes = chain(*range(4))
    whole = stored(pool, hashes, 0)
    pool.release(stored(pool, hashes, 64))
    assert pool.match(hashes, 64) == whole
    assert pool.num_free == 4


@pytest.mark.parametrize("block_size", [8, 16, 32])
def test_whatever_comes_and_goes_a_match_sees_what_it_should(block_size: int) -> None:
    """Against a record of what each block holds."""
    rng = random.Random(block_size)
    pool = BlockPool(1024 // block_size, block_size, 16, window=WINDOW)
    is_whole: dict[BlockId, bool] = {}
    held: list[list[BlockId]] = []
    num_behind_thin = 0
    for _ in range(2000):
        branch = rng.randrange(40)  # all begin with the same grain
        depths = range(rng.randrange(1, 20))
        hashes = chain(*(depth and 100 * branch + depth for depth in depths))
        matched = pool.match(hashes, len(hashes) * 16)
        stop = len(matched) * block_size
        first = first_visible(WINDOW, stop) // block_size
        assert all(is_whole[block] for block in matched[first:])
        num_behind_thin += not all(is_whole[block] for block in matched)
        pool.hold(matched)
        fresh = pool.allocate(-(-len(hashes) * 16 // block_size) - len(matched))
        if fresh is None:
            pool.release(matched)
        else:
            whole_from = rng.choice([0, 1, 1, 1]) * first_visible(WINDOW, len(hashes) * 16)
            whole_from = max(whole_from, stop) if whole_from else 0
            table = matched + fresh
            for index, block in enumerate(fresh, len(matched)):
                is_whole[block] = index * block_size >= whole_from
            pool.store(hashes, table, len(matched), whole_from=whole_from)
            held.append(table)
        while held and (fresh is None or rng.random() < 0.4):
            pool.release(held.pop(rng.randrange(len(held))))
            fresh = []
        pool.check()
    assert num_behind_thin > 20
