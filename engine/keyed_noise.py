"""Random numbers that are a function of (seed, choice, position, token id), and of nothing else.

So a draw is the same in any batch, after any interruption, on any machine and device.
"""

import struct
from hashlib import blake2b

import torch
from torch import Tensor

# The constants of splitmix64, as signed integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)), (31, 1))


def gumbel_noise(seed: int, choice: int, position: int, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, for int64 `token_ids`: the token with the largest sum of
    log-probability and noise is a draw from the distribution.

    Unlike one uniform number against the cumulative distribution, a rounding error in the
    probabilities then changes the draw only where two sums are that close.
    """
    uniform = _uniform(_key(seed, choice, position), token_ids)
    # -log(-log1p(-u)): the largest noise comes from u near 0, where floats are finest.
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _key(seed: int, choice: int, position: int) -> int:
    message = struct.pack("<QQQ", seed & (1 << 64) - 1, choice, position)
    return int.from_bytes(blake2b(message, digest_size=8).digest(), "little", signed=True)


def _uniform(key: int, token_ids: Tensor) -> Tensor:
    """Element `token_id` of the splitmix64 stream that starts at `key`, as float32 in (0, 1]."""
    state = (token_ids + 1).mul_(_GOLDEN).add_(key)
    for bits, factor in _ROUNDS:
        state.bitwise_xor_(_shifted(state, bits)).mul_(factor)
    return _shifted(state, 11).to(torch.float32).add_(0.5).mul_(2.0**-53)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch has only the arithmetic one."""
    return (state >> bits).bitwise_and_((1 << (64 - bits)) - 1)
