"""Chooses who computes what lies between products and attention: the kernels for this device where
they can be had and are right on a small case, else torch."""

import dataclasses
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from cluster.compiled import CompileError
from engine.cpu_kernels.native_layer_ops import NativeLayerOps
from engine.kernel_error import NoKernelError
from engine.kv_cache import KvCache
from engine.layer_ops import LayerOps, TorchLayerOps
from engine.model_spec import ModelSpec

TRIED_ROWS = 3
# Of numbers of about one (gates of a few); what is wrong is wrong by far more.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

logger = logging.getLogger(__name__)


class KernelForm(NamedTuple):
    make: Callable[[ModelSpec, KvCache], LayerOps]  # *raises* CompileError, NoKernelError
    trying: AbstractContextManager[None]  # around its first calls, whose errors it translates


def choose_layer_ops(spec: ModelSpec, cache: KvCache, dtype: torch.dtype) -> LayerOps:
    """`dtype`: of what is computed."""
    by_torch = TorchLayerOps(spec, cache)
    try:
        form = _form(cache.device, dtype)
        if form is None:
            return by_torch
        kernels = form.make(spec, cache)
        with form.trying:
            difference = largest_difference(form.make, spec, cache, dtype)
    except (CompileError, NoKernelError) as error:
        logger.warning("Layers' small operations are torch's, which is slower: %s", error)
        return by_torch
    if difference < TOLERANCES[dtype]:
        return kernels
    logger.warning("Layers' small operations are torch's: the kernel's differ by %.1g", difference)
    return by_torch


def _form(device: torch.device, dtype: torch.dtype) -> KernelForm | None:
    """*Raises* NoKernelError."""
    if device.type == "cpu":
        return KernelForm(NativeLayerOps, nullcontext()) if dtype is torch.float32 else None
    if device.type != "cuda":
        return None
    # Triton takes seconds to import, and a machine without a GPU need not have it.
    from engine.triton_kernels.door import first_launches
    from engine.triton_kernels.triton_layer_ops import TritonLayerOps

    return KernelForm(TritonLayerOps, first_launches())


@torch.inference_mode()
def largest_difference(
    make: Callable[[ModelSpec, KvCache], LayerOps],
    spec: ModelSpec,
    cache: KvCache,
    dtype: torch.dtype,
) -> float:
    """From torch's, with all that a model of this geometry has."""
    tried = dataclasses.replace(spec, num_layers=1, windows=(None,))
    device, kv_dtype = cache.device, cache.dtype
    layout = tried.kv_layout(
        num_blocks=1, block_size=TRIED_ROWS, dtype=str(kv_dtype).removeprefix("torch.")
    )
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    hidden, added = drawn(2, TRIED_ROWS, spec.hidden_size)
    weight = drawn(spec.hidden_size)
    qkv = drawn(TRIED_ROWS, heads + 2 * kv_heads, dim)
    norms = drawn(heads + kv_heads, dim)
    gate_up = drawn(TRIED_ROWS, 2 * spec.intermediate_size)
    table, places = drawn(9, spec.hidden_size), torch.arange(TRIED_ROWS, device=device)
    slots = places.flip(0)

    def results(form: Callable[[ModelSpec, KvCache], LayerOps]) -> list[Tensor]:
        own_cache = KvCache(layout, None, device)
        ops, own_hidden, own_qkv = form(tried, own_cache), hidden.clone(), qkv.clone()
        embedded, rotations = ops.embed(slots, table), ops.rotations(places)
        normed = ops.norm(own_hidden, added, weight)
        ops.rotate(0, own_qkv, norms, rotations, slots)
        kept = own_qkv[:, heads:].view(TRIED_ROWS, 2, kv_heads, dim).transpose(0, 1)
        lost = own_cache.layers[0][:, slots].float() - kept.to(kv_dtype).float()
        return [embedded, own_hidden, normed, own_qkv, lost, ops.gate(gate_up)]

    pairs = zip(results(make), results(TorchLayerOps), strict=True)
    # torch's maximum: a NaN is larger than all.
    return float(torch.stack([(one - other).abs().max().float() for one, other in pairs]).max())
