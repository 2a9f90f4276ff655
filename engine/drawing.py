"""Draws tokens from a distribution: temperature, min-p, top-k, nucleus, and noise by a key.

A token is the best of score and noise, as in the Gumbel-max trick; its noise depends on the key of
its draw alone, so an answer is continued elsewhere with the same tokens. Here in torch, on any
device; `engine/cpu_kernels/sampling.cpp` says the same for processors.
"""

import math
import struct
from collections.abc import Callable
from collections.abc import Sequence as Rows
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from cluster.types import SamplingParams
from engine.sequence import Sequence

_HIDDEN = -math.inf


class Draw(NamedTuple):
    """Sample the token at `position` of `sequence`, once for each choice."""

    sequence: Sequence
    position: int
    choices: tuple[int, ...]


# Tokens for each draw's choices, from the float32 logits [num_draws, vocab_size] of its row.
Drawing = Callable[[Tensor, Rows[Draw]], list[list[int]]]


def draw_plainly(logits: Tensor, draws: Rows[Draw]) -> list[list[int]]:
    if all(draw.sequence.params.sampling.temperature == 0 for draw in draws):
        best = logits.max(-1).indices.tolist()  # three times as fast as argmax
        return [[token] * len(draw.choices) for token, draw in zip(best, draws, strict=True)]
    return [_draw(row, draw) for row, draw in zip(logits, draws, strict=True)]


def _draw(logits: Tensor, draw: Draw) -> list[int]:
    params = draw.sequence.params.sampling
    if params.temperature == 0:
        return [int(logits.argmax())] * len(draw.choices)
    # From the best one down, so that no temperature is too low to divide by.
    scores, token_ids = _candidates((logits - logits.max()) / params.temperature, params)
    tokens = []
    for choice in draw.choices:
        noise = gumbel_noise(params.seed, choice, draw.position, token_ids)
        index = _best_in_nucleus(scores, noise.add_(scores), params.top_p)
        tokens.append(int(token_ids[index]))
    return tokens


def _candidates(scores: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The scores and ids of the tokens that min-p and then top-k leave; equal ones stand or fall
    together."""
    token_ids = torch.arange(len(scores), device=scores.device)
    if (least := _least(params)) > _HIDDEN:
        token_ids = (scores >= least).nonzero()[:, 0]
        scores = scores[token_ids]
    if 0 < params.top_k < len(scores):
        kept = (scores >= scores.topk(params.top_k).values[-1]).nonzero()[:, 0]
        scores, token_ids = scores[kept], token_ids[kept]
    return scores, token_ids


def _least(params: SamplingParams) -> float:
    """The score of the least likely token that min-p leaves; the best one's is 0."""
    return math.log(params.min_p) if params.min_p > 0 else _HIDDEN


def _best_in_nucleus(scores: Tensor, noisy_scores: Tensor, top_p: float) -> int:
    """The best of the fewest tokens whose share reaches `top_p`, found without sorting.

    A token belongs to them if those above it fall short of `top_p` (so equal ones stand or fall
    together); if the best one does not, neither does any below it. Changes `noisy_scores`.
    """
    best = int(noisy_scores.argmax())
    if top_p >= 1:
        return best
    shares = scores.softmax(0)
    while float(shares.dot((scores > scores[best]).to(shares.dtype))) >= top_p:
        noisy_scores.masked_fill_(scores <= scores[best], _HIDDEN)
        best = int(noisy_scores.argmax())
    return best


# The constants of splitmix64, as signed integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)), (31, 1))


def gumbel_noise(seed: int, choice: int, position: int, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, for int64 `token_ids`: the token with the largest sum of
    log-probability and noise is a draw from the distribution.

    Unlike one uniform number against the cumulative distribution, a rounding error in the
    probabilities then changes the draw only where two sums are that close.
    """
    uniform = _uniform(noise_key(seed, choice, position), token_ids)
    # -log(-log1p(-u)): the largest noise comes from u near 0, where floats are finest.
    return uniform.neg_().log1p_().neg_().log_().neg_()


def numbers(params: SamplingParams, choice: int, position: int) -> tuple[float, ...]:
    """Temperature, least score, nucleus, number of candidates; before them the key of the noise."""
    key = noise_key(params.seed, choice, position) if params.temperature > 0 else 0
    return key, params.temperature, _least(params), params.top_p, params.top_k


def noise_key(seed: int, choice: int, position: int) -> int:
    """64 bits, signed."""
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
