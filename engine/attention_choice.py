"""Chooses who attends: the kernel for this processor where it can be had and is right, else torch.

The kernel is tried on a small case before anything is served; it is not timed.
"""

import logging
import random

import torch
from torch import Tensor

from cluster.compiled import CompileError
from cluster.errors import ConfigError
from cluster.measurements import Measurements
from cluster.types import KvLayout
from engine.attention import Attention, Query
from engine.config import ATTENTION, KERNEL_MISSING, AttentionForm
from engine.cpu_kernels.native_attention import NativeAttention
from engine.cpu_kernels.torch_threads import NoKernelError
from engine.kv_cache import KvCache, slots_of
from engine.paged_attention import PagedAttention

TRIED_TOKENS = 150  # enough for several blocks, and to join two pieces
TOLERANCE = 1e-4  # of outputs of about one; what is wrong is wrong by far more

logger = logging.getLogger(__name__)


def choose_attention(
    wanted: AttentionForm,
    num_heads: int,
    layout: KvLayout,
    device: torch.device,
    measurements: Measurements,
) -> Attention:
    """Chooses, and says what in the measurements' choices. Raises ConfigError where the kernel is
    wanted by name and cannot be had."""
    by_torch = PagedAttention(num_heads, layout, device)
    if wanted == "torch" or (wanted == "auto" and device.type != "cpu"):
        measurements.choices[ATTENTION] = f"torch, on {device.type}"
        return by_torch
    try:
        native = _tried(num_heads, layout, device)
    except (CompileError, NoKernelError) as error:
        if wanted == "native":
            raise ConfigError(
                f"'attention' is 'native', and there is no kernel: {error}. Mend that, or say"
                " 'auto' to serve without it."
            ) from error
        logger.warning("Attention is torch's, which is slower: %s", error)
        measurements.choices[ATTENTION] = f"{KERNEL_MISSING}: {error}"
        return by_torch
    measurements.choices[ATTENTION] = f"native, {native.num_lanes} numbers at a time"
    return native


def _tried(num_heads: int, layout: KvLayout, device: torch.device) -> NativeAttention:
    """*Raises* CompileError or NoKernelError."""
    if device.type != "cpu":
        raise NoKernelError(f"it is for a CPU, and the device is '{device}'")
    native = NativeAttention(num_heads, layout)
    error = _largest_difference(num_heads, layout, device)
    if not error < TOLERANCE:  # nor if it is no number
        raise NoKernelError(f"what it computes differs by {error:.1g}")
    return native


@torch.inference_mode()
def _largest_difference(num_heads: int, layout: KvLayout, device: torch.device) -> float:
    """Between both, on a chunk and on a single token behind a context."""
    num_blocks = -(-TRIED_TOKENS // layout.block_size)
    tried = KvLayout(
        num_layers=1,
        num_blocks=num_blocks,
        block_size=layout.block_size,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        dtype=layout.dtype,
        windows=(layout.widest_window,),
    )
    generator = torch.Generator().manual_seed(0)
    [cache] = KvCache(tried, None, device).layers
    cache.copy_(torch.randn(cache.shape, generator=generator))
    table = random.Random(0).sample(range(num_blocks), num_blocks)
    queries = [Query(table, TRIED_TOKENS - 9, 9), Query(table, TRIED_TOKENS - 1, 1)]
    rows = [_qkv(query, num_heads, tried, cache, generator) for query in queries]
    forms: list[Attention] = [
        NativeAttention(num_heads, tried),
        PagedAttention(num_heads, tried, device),
    ]
    outputs = [form.attend(0, form.plan(queries), torch.cat(rows), cache) for form in forms]
    return float((outputs[0] - outputs[1]).abs().max())


def _qkv(
    query: Query, num_heads: int, layout: KvLayout, cache: Tensor, generator: torch.Generator
) -> Tensor:
    """Queries, beside the keys and values that the cache has for their tokens."""
    stop = query.start + query.num_new
    slots = torch.from_numpy(slots_of(query.block_table, layout.block_size, query.start, stop))
    own = cache[:, slots].transpose(0, 1).flatten(1, 2).float()
    drawn = torch.randn(query.num_new, num_heads, layout.head_dim, generator=generator)
    return torch.cat([drawn * layout.head_dim**-0.5, own], dim=1)
