"""Rotary position embeddings: frequencies of every supported kind, and the rotation itself.

A pair of dimensions (i, i + head_dim / 2) of the checkpoint is stored interleaved as (2i, 2i + 1),
in the weights and so in the cache, because then a rotation is one complex product.
"""

import math

import torch
from torch import Tensor

from engine.model_spec import ModelSpec, RopeKind, RopeSpec


class Rope:
    """Rotations for positions. Computed for each step: a table for a long context is large."""

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        self._frequencies = inverse_frequencies(spec.rope, spec.head_dim).to(device)
        self._scale = attention_scale(spec.rope)

    def rotations(self, positions: Tensor) -> Tensor:
        """Complex [num_tokens, 1, head_dim / 2] for int64 positions [num_tokens]."""
        angles = positions[:, None].float() * self._frequencies
        return torch.polar(torch.full_like(angles, self._scale), angles).unsqueeze(1)


def rotate_in_place(heads: Tensor, rotations: Tensor) -> None:
    """Rotate [num_tokens, num_heads, head_dim], a view of the fused projection."""
    pairs = heads.view(*heads.shape[:-1], -1, 2)
    if heads.dtype is torch.float32:
        torch.view_as_complex(pairs).mul_(rotations)
    else:
        rotated = torch.view_as_complex(pairs.float()) * rotations
        pairs.copy_(torch.view_as_real(rotated))


def interleaved_order(head_dim: int) -> Tensor:
    """Maps each stored dimension of a head to its dimension in the checkpoint."""
    return torch.arange(head_dim).view(2, head_dim // 2).t().reshape(-1)


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> Tensor:
    """[head_dim / 2] radians per position. The operations are the reference's, in its order."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    wavelengths = rope.theta**exponents
    match rope.kind:
        case RopeKind.DEFAULT:
            return 1.0 / wavelengths
        case RopeKind.LINEAR:
            return 1.0 / wavelengths / rope.factor
        case RopeKind.LLAMA3:
            return _llama3(1.0 / wavelengths, rope)
        case RopeKind.YARN:
            return _yarn(wavelengths, rope, head_dim)


def attention_scale(rope: RopeSpec) -> float:
    """Gives what YaRN multiplies queries and keys with."""
    if rope.kind is not RopeKind.YARN:
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _llama3(frequencies: Tensor, rope: RopeSpec) -> Tensor:
    """Long wavelengths are divided by the factor, short ones kept, the middle blended."""
    low, high = rope.low_freq_factor, rope.high_freq_factor
    wavelengths = 2 * math.pi / frequencies
    is_long = wavelengths > rope.original_context / low
    is_short = wavelengths < rope.original_context / high
    scaled = torch.where(is_long, frequencies / rope.factor, frequencies)
    smooth = (rope.original_context / wavelengths - low) / (high - low)
    blended = (1 - smooth) * scaled / rope.factor + smooth * scaled
    return torch.where(~is_short & ~is_long, blended, scaled)


def _yarn(wavelengths: Tensor, rope: RopeSpec, head_dim: int) -> Tensor:
    """Extrapolate fast dimensions, interpolate slow ones, with a linear ramp between."""

    def dimension(num_rotations: float) -> float:
        turns = rope.original_context / (num_rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # the ramp is a step
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)
    kept = 1 - ramp.clamp(0, 1)
    return 1.0 / (rope.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept
