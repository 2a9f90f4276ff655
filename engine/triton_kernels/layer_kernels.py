"""What lies between a decoder's products and attention, in Triton: each kernel reads its numbers
once and computes in float32. `triton_layer_ops.py` launches them.
"""

from engine.triton_kernels.door import jit, tl


@jit
def add_and_norm(
    hidden,  # [num_tokens, SIZE], to which `added` is added in place
    added,
    weight,
    output,
    eps,
    SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    HAS_ADDED: tl.constexpr,
):
    """A program a token."""
    place = tl.arange(0, PADDED_SIZE)
    is_number = place < SIZE
    at = tl.program_id(0).to(tl.int64) * SIZE + place
    x = tl.load(hidden + at, mask=is_number, other=0.0)
    if HAS_ADDED:
        more = tl.load(added + at, mask=is_number, other=0.0)
        # Rounded as it is kept: the norm is of that.
        x = (x.to(tl.float32) + more.to(tl.float32)).to(hidden.dtype.element_ty)
        tl.store(hidden + at, x, mask=is_number)
    x = x.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(x * x, 0) / SIZE + eps)
    weights = tl.load(weight + place, mask=is_number, other=0.0).to(tl.float32)
    tl.store(output + at, (x * scale * weights).to(output.dtype.element_ty), mask=is_number)


@jit
def rotate_and_keep(
    qkv,  # [num_tokens, NUM_HEADS + 2 * NUM_KV_HEADS, DIM], rotated in place
    norms,  # [NUM_HEADS + NUM_KV_HEADS, DIM]
    rotations,  # float32 [num_tokens, DIM / 2, 2]: cosine, sine
    slots,
    cache,  # [2, num_slots, NUM_KV_HEADS, DIM], planes `plane_stride` apart
    plane_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_PAIRS: tl.constexpr,
    HAS_NORMS: tl.constexpr,
):
    """A program a head of a token; of K and V it also writes the cache."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pair = tl.arange(0, PADDED_PAIRS)
    is_pair = pair < DIM // 2
    first = (token * (NUM_HEADS + 2 * NUM_KV_HEADS) + head) * DIM + 2 * pair
    real = tl.load(qkv + first, mask=is_pair, other=0.0)
    imaginary = tl.load(qkv + first + 1, mask=is_pair, other=0.0)
    if head < NUM_HEADS + NUM_KV_HEADS:
        x, y = real.to(tl.float32), imaginary.to(tl.float32)
        if HAS_NORMS:
            scale = 1 / tl.sqrt((tl.sum(x * x, 0) + tl.sum(y * y, 0)) / DIM + eps)
            norm = norms + head * DIM + 2 * pair
            x = x * scale * tl.load(norm, mask=is_pair, other=0.0).to(tl.float32)
            y = y * scale * tl.load(norm + 1, mask=is_pair, other=0.0).to(tl.float32)
        turn = rotations + token * DIM + 2 * pair
        cosine = tl.load(turn, mask=is_pair, other=0.0)
        sine = tl.load(turn + 1, mask=is_pair, other=0.0)
        real = (x * cosine - y * sine).to(qkv.dtype.element_ty)
        imaginary = (x * sine + y * cosine).to(qkv.dtype.element_ty)
        tl.store(qkv + first, real, mask=is_pair)
        tl.store(qkv + first + 1, imaginary, mask=is_pair)
    if head >= NUM_HEADS:
        own = head - NUM_HEADS
        plane, kv_head = own // NUM_KV_HEADS, own % NUM_KV_HEADS
        slot = tl.load(slots + token)
        kept = plane * plane_stride + (slot * NUM_KV_HEADS + kv_head) * DIM + 2 * pair
        tl.store(cache + kept, real.to(cache.dtype.element_ty), mask=is_pair)
        tl.store(cache + kept + 1, imaginary.to(cache.dtype.element_ty), mask=is_pair)


@jit
def gate_and_multiply(
    gate_up,  # [num_tokens, 2 * size]
    output,  # [num_tokens, size]
    size,
    NUM_PLACES: tl.constexpr,
):
    """silu(gate) * up, some places of a token a program."""
    token = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * NUM_PLACES + tl.arange(0, NUM_PLACES)
    is_number = place < size
    row = gate_up + token * 2 * size + place
    gate = tl.load(row, mask=is_number, other=0.0).to(tl.float32)
    up = tl.load(row + size, mask=is_number, other=0.0).to(tl.float32)
    shrunk = tl.exp(-tl.abs(gate))  # of an exponent that cannot overflow
    gated = gate * tl.where(gate >= 0, 1.0, shrunk) / (1 + shrunk) * up
    tl.store(output + token * size + place, gated.to(output.dtype.element_ty), mask=is_number)
