"""Attention is cut so that each token meets each key that it sees once, and as its row says."""

import itertools

import numpy as np
import pytest

from engine.attention import Query
from engine.triton_kernels.attention_plan import QueryColumns, UnitTable, cut

BLOCK_SIZE = 16
SPANS = [(0, 1), (0, 300), (4095, 1), (1000, 40), (70_000, 1), (255, 1), (256, 1), (254, 4), (9, 1)]


def cut_of(spans: list[tuple[int, int]], window: int | None, tokens: int, heads: int) -> UnitTable:
    queries = [Query([0] * -(-(start + new) // BLOCK_SIZE), start, new) for start, new in spans]
    return cut(QueryColumns.of(queries, BLOCK_SIZE), window, tokens, heads)


@pytest.mark.parametrize("window", [None, 1, 100, 5000])
@pytest.mark.parametrize("tokens", [1, 4, 128])
@pytest.mark.parametrize("heads", [1, 8])
def test_each_token_meets_each_key_that_it_sees_once(
    window: int | None, tokens: int, heads: int
) -> None:
    table = cut_of(SPANS, window, tokens, heads)
    seen: dict[int, list[tuple[int, int, int]]] = {}  # of a token: keys, and where they went
    tables: dict[int, int] = {}
    for first, num, position, at, begin, end, partial, _ in table.units.tolist():
        assert 1 <= num <= tokens
        assert begin < end
        for token in range(num):
            last = min(end, position + token + 1)
            seen.setdefault(first + token, []).append(
                (begin, last, partial + token if partial >= 0 else -1)
            )
            tables[first + token] = at
    merged = {row[0]: row[1:] for row in table.merges.tolist()}
    token, first_block, partials = 0, 0, set()
    for start, num_new in SPANS:
        for position in range(start, start + num_new):
            pieces = sorted(seen.pop(token))
            oldest = 0 if window is None else max(0, position - window + 1)
            assert pieces[0][0] <= oldest
            stops = [begin for begin, _, _ in pieces[1:]]
            assert all(
                last >= stop or last == position + 1
                for (_, last, _), stop in zip(pieces, stops, strict=False)
            )
            assert max(last for _, last, _ in pieces) == position + 1
            assert tables[token] == first_block
            found = [partial for _, _, partial in pieces]
            if token in merged:
                first, count, apart = merged.pop(token)
                assert found == [first + apart * piece for piece in range(count)]
                assert not partials & {*found}
                partials |= {*found}
            else:
                assert found == [-1]
            token += 1
        first_block += -(-(start + num_new) // BLOCK_SIZE)
    assert not seen
    assert not merged
    assert partials == {*range(table.num_partials)}


def test_a_row_is_cut_the_same_whatever_lies_beside_it() -> None:
    for window, heads in itertools.product((None, 300), (1, 8)):
        together = cut_of(SPANS, window, 4, heads)
        first_token = 0
        for start, num_new in SPANS:
            alone = cut_of([(start, num_new)], window, 4, heads)
            token = together.units[:, 0]
            own = together.units[(token >= first_token) & (token < first_token + num_new)]
            assert {*map(tuple, (own[:, [1, 2, 4, 5]]).tolist())} == {
                *map(tuple, alone.units[:, [1, 2, 4, 5]].tolist())
            }
            first_token += num_new


def test_a_long_context_keeps_a_large_card_busy_and_a_short_one_is_left_whole() -> None:
    assert len(cut_of([(131_071, 1)], None, 4, 8).units) == 32
    assert len(cut_of([(255, 1)], None, 4, 8).units) == 1
    whole = cut_of([(0, 8192)], None, 32, 8)
    assert len(whole.merges) == 0
    assert len(whole.units) == 256
    assert np.all(np.diff(whole.units[:, 5] - whole.units[:, 4]) <= 0)
