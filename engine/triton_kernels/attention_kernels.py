"""Attention over the paged KV cache in Triton: one kernel for chunks and single tokens alike, and
one that joins what several programs found for the same token. `attention_plan.py` cuts the work.
"""

from engine.triton_kernels.door import IS_INTERPRETED, jit, tl

UNIT_NUMBERS = tl.constexpr(8)  # of a unit; see `UnitTable`
MERGE_NUMBERS = tl.constexpr(4)
LOG2_E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(IS_INTERPRETED)


@jit
def product(left, right, PRECISION: tl.constexpr):
    if INTERPRETED:  # where bfloat16 would be multiplied as the integers that it is kept as
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision=PRECISION)


@jit
def attend_units(
    queries,  # [num_tokens, >= NUM_HEADS, DIM], tokens `query_stride` apart
    keys,  # [num_slots, NUM_KV_HEADS, DIM]
    values,
    output,  # [num_tokens, NUM_HEADS, DIM]
    partials,  # float32 [num_partials, NUM_HEADS, DIM], each normed
    log_sums,  # float32 [num_partials, NUM_HEADS], by base 2
    units,
    tables,
    query_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    SOFT_CAP: tl.constexpr,  # 0: none
    NUM_ROWS: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A unit's tokens, of all heads that share one K/V head, against some of the keys they see."""
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    unit = units + tl.program_id(0) * UNIT_NUMBERS
    kv_head = tl.program_id(1)
    first_token, num_tokens = tl.load(unit), tl.load(unit + 1)
    first_position, table = tl.load(unit + 2), tl.load(unit + 3)
    first_key, stop_key = tl.load(unit + 4), tl.load(unit + 5)
    partial = tl.load(unit + 6)

    # The query heads that share a K/V head lie beside each other: GROUP rows are a token.
    row = tl.arange(0, NUM_ROWS)
    token, head = row // GROUP, kv_head * GROUP + row % GROUP
    is_row = token < num_tokens
    position = first_position + token
    dim = tl.arange(0, PADDED_DIM)
    is_number = is_row[:, None] & (dim < DIM)[None, :]
    query_row = (first_token + token).to(tl.int64) * query_stride + head * DIM
    query = tl.load(queries + query_row[:, None] + dim[None, :], mask=is_number, other=0.0)

    best = tl.full([NUM_ROWS], -float("inf"), tl.float32)
    total = tl.zeros([NUM_ROWS], tl.float32)
    mixed = tl.zeros([NUM_ROWS, PADDED_DIM], tl.float32)
    for first in range(first_key, stop_key, NUM_KEYS):
        key = first + tl.arange(0, NUM_KEYS)
        is_key = key < stop_key
        block = tl.load(tables + table + key // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
        slot = block * BLOCK_SIZE + key % BLOCK_SIZE
        kept = (slot * NUM_KV_HEADS + kv_head) * DIM
        is_kept = is_key[:, None] & (dim < DIM)[None, :]
        key_rows = tl.load(keys + kept[:, None] + dim[None, :], mask=is_kept, other=0.0)
        scores = product(query, tl.trans(key_rows.to(query.dtype)), PRECISION)
        if SOFT_CAP > 0:
            # tanh(x) = 2 * sigmoid(2 * x) - 1
            scores = SOFT_CAP * (2 * tl.sigmoid(2 * scores / SOFT_CAP) - 1)
        sees = is_key[None, :] & (key[None, :] <= position[:, None])
        if WINDOW > 0:
            sees = sees & (key[None, :] > position[:, None] - WINDOW)
        scores = tl.where(sees, scores * LOG2_E, -float("inf"))

        better = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(better == -float("inf"), 0.0, better)  # nothing seen yet
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(best - base)
        value_rows = tl.load(values + kept[:, None] + dim[None, :], mask=is_kept, other=0.0)
        value_rows = value_rows.to(query.dtype)
        mixed = mixed * decay[:, None]
        mixed += product(weights.to(query.dtype), value_rows, PRECISION)
        total = total * decay + tl.sum(weights, 1)
        best = better

    total = tl.where(total == 0, 1.0, total)  # where a token sees none of these keys
    normed = mixed / total[:, None]
    if partial < 0:
        at = ((first_token + token).to(tl.int64) * NUM_HEADS + head) * DIM
        found = normed.to(output.dtype.element_ty)
        tl.store(output + at[:, None] + dim[None, :], found, mask=is_number)
    else:
        part = (partial + token).to(tl.int64) * NUM_HEADS + head
        tl.store(partials + part[:, None] * DIM + dim[None, :], normed, mask=is_number)
        tl.store(log_sums + part, best + tl.log2(total), mask=is_row)


@jit
def merge_partials(
    partials,
    log_sums,
    output,
    merges,
    NUM_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    NUM_PARTS: tl.constexpr,
):
    """One token of one head, from its partials, which lie `apart` from each other."""
    merge = merges + tl.program_id(0) * MERGE_NUMBERS
    head = tl.program_id(1)
    token, first_partial = tl.load(merge), tl.load(merge + 1)
    num_partials, apart = tl.load(merge + 2), tl.load(merge + 3)
    dim = tl.arange(0, PADDED_DIM)
    best = -float("inf")
    total = 0.0
    mixed = tl.zeros([PADDED_DIM], tl.float32)
    for first in range(0, num_partials, NUM_PARTS):
        part = first + tl.arange(0, NUM_PARTS)
        is_part = part < num_partials
        row = (first_partial + part * apart).to(tl.int64) * NUM_HEADS + head
        log_sum = tl.load(log_sums + row, mask=is_part, other=-float("inf"))
        better = tl.maximum(best, tl.max(log_sum, 0))
        base = tl.where(better == -float("inf"), 0.0, better)
        weights, decay = tl.exp2(log_sum - base), tl.exp2(best - base)
        is_number = is_part[:, None] & (dim < DIM)[None, :]
        parts = tl.load(partials + row[:, None] * DIM + dim[None, :], mask=is_number, other=0.0)
        mixed = mixed * decay + tl.sum(weights[:, None] * parts, 0)
        total = total * decay + tl.sum(weights, 0)
        best = better
    at = (token.to(tl.int64) * NUM_HEADS + head) * DIM
    found = (mixed / total).to(output.dtype.element_ty)
    tl.store(output + at + dim, found, mask=dim < DIM)
