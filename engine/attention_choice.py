"""Chooses who attends: the kernels for this device where they can be had and are right, else torch.

Kernels are tried on a small case before anything is served; they are not timed.
"""

import logging
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from cluster.compiled import CompileError
from cluster.errors import ConfigError
from cluster.measurements import Measurements
from cluster.types import KvLayout
from engine.attention import Attention, Query
from engine.config import ATTENTION, KERNEL_MISSING, AttentionForm
from engine.cpu_kernels.native_attention import NativeAttention
from engine.kernel_error import NoKernelError
from engine.kv_cache import KvCache, slots_of
from engine.paged_attention import PagedAttention

TRIED_TOKENS = 300  # enough for several blocks, and to join two pieces
# By what is computed, of outputs of about one; what is wrong is wrong by far more.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
PREFERRED: Mapping[str, AttentionForm] = {"cpu": "native", "cuda": "triton"}

logger = logging.getLogger(__name__)


class Kernel(NamedTuple):
    attention: Attention
    said: str  # of it, in the measurements' choices
    trying: AbstractContextManager[None]  # around its first calls, whose errors it translates


# *Raises* CompileError or NoKernelError.
Maker = Callable[[int, KvLayout, torch.device, torch.dtype], Kernel]


def choose_attention(
    wanted: AttentionForm,
    num_heads: int,
    layout: KvLayout,
    device: torch.device,
    dtype: torch.dtype,
    measurements: Measurements,
) -> Attention:
    """Chooses, and says what in the measurements' choices. `dtype`: of what is computed. Raises
    ConfigError where a kernel is wanted by name and cannot be had."""
    by_torch = PagedAttention(num_heads, layout, device)
    form = PREFERRED.get(device.type, "torch") if wanted == "auto" else wanted
    if form == "torch":
        measurements.choices[ATTENTION] = f"torch, on {device.type}"
        return by_torch
    try:
        kernel = _tried(MAKERS[form], num_heads, layout, device, dtype)
    except (CompileError, NoKernelError) as error:
        if wanted != "auto":
            raise ConfigError(
                f"'attention' is '{wanted}', and there is no kernel: {error}. Mend that, or say"
                " 'auto' to serve without it."
            ) from error
        logger.warning("Attention is torch's, which is slower: %s", error)
        measurements.choices[ATTENTION] = f"{KERNEL_MISSING}: {error}"
        return by_torch
    measurements.choices[ATTENTION] = kernel.said
    return kernel.attention


def _native(num_heads: int, layout: KvLayout, device: torch.device, dtype: torch.dtype) -> Kernel:
    if device.type != "cpu":
        raise NoKernelError(f"it is for a CPU, and the device is '{device}'")
    attention = NativeAttention(num_heads, layout)
    return Kernel(attention, f"native, {attention.num_lanes} numbers at a time", nullcontext())


def _triton(num_heads: int, layout: KvLayout, device: torch.device, dtype: torch.dtype) -> Kernel:
    # Triton takes seconds to import, and a machine without a GPU need not have it.
    from engine.triton_kernels.door import first_launches
    from engine.triton_kernels.triton_attention import TritonAttention

    attention = TritonAttention(num_heads, layout, device, dtype)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreted"
    return Kernel(attention, f"triton, {where}", first_launches())


MAKERS: Mapping[AttentionForm, Maker] = {"native": _native, "triton": _triton}


def _tried(
    make: Maker, num_heads: int, layout: KvLayout, device: torch.device, dtype: torch.dtype
) -> Kernel:
    """*Raises* CompileError or NoKernelError."""
    kernel = make(num_heads, layout, device, dtype)
    with kernel.trying:
        error = _largest_difference(make, num_heads, layout, device, dtype)
    if not error < TOLERANCES[dtype]:  # nor if it is no number
        raise NoKernelError(f"what it computes differs by {error:.1g}")
    return kernel


@torch.inference_mode()
def _largest_difference(
    make: Maker, num_heads: int, layout: KvLayout, device: torch.device, dtype: torch.dtype
) -> float:
    """From torch's in float32, on a chunk beside a single token behind a context, and on that
    alone."""
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
    rows = [_qkv(query, num_heads, tried, cache, generator).to(dtype) for query in queries]
    kernel = make(num_heads, tried, device, dtype).attention
    by_torch = PagedAttention(num_heads, tried, device)
    differences = []
    for first in range(len(queries)):
        some, qkv = queries[first:], torch.cat(rows[first:])
        found = kernel.attend(0, kernel.plan(some), qkv, cache)
        wanted = by_torch.attend(0, by_torch.plan(some), qkv.float(), cache)
        differences.append((found.float() - wanted).abs().max())
    return float(torch.stack(differences).max())  # torch's maximum: a NaN is larger than all


def _qkv(
    query: Query, num_heads: int, layout: KvLayout, cache: Tensor, generator: torch.Generator
) -> Tensor:
    """Queries, beside the keys and values that the cache has for their tokens."""
    stop = query.start + query.num_new
    slots = torch.from_numpy(slots_of(query.block_table, layout.block_size, query.start, stop))
    own = cache[:, slots.to(cache.device)].transpose(0, 1).flatten(1, 2).float()
    drawn = torch.randn(query.num_new, num_heads, layout.head_dim, generator=generator)
    return torch.cat([drawn.to(cache.device) * layout.head_dim**-0.5, own], dim=1)
