"""Chooses who computes what lies between products and attention: the kernel for this processor
where it can be had and is right on a small case, else torch."""

import dataclasses
import logging

import torch
from torch import Tensor

from cluster.compiled import CompileError
from engine.cpu_kernels.native_layer_ops import NativeLayerOps
from engine.cpu_kernels.torch_threads import NoKernelError
from engine.kv_cache import KvCache
from engine.layer_ops import LayerOps, TorchLayerOps
from engine.model_spec import ModelSpec

TRIED_ROWS = 3
TOLERANCE = 1e-4  # of numbers of about one; what is wrong is wrong by far more

logger = logging.getLogger(__name__)


def choose_layer_ops(spec: ModelSpec, cache: KvCache, dtype: torch.dtype) -> LayerOps:
    """`dtype`: of what is computed."""
    if cache.device.type != "cpu" or dtype is not torch.float32:
        return TorchLayerOps(spec, cache)
    try:
        native = NativeLayerOps(spec, cache)
        difference = largest_difference(spec, cache.dtype)
    except (CompileError, NoKernelError) as error:
        logger.warning("Layers' small operations are torch's, which is slower: %s", error)
        return TorchLayerOps(spec, cache)
    if difference < TOLERANCE:
        return native
    logger.warning("Layers' small operations are torch's: the kernel's differ by %.1g", difference)
    return TorchLayerOps(spec, cache)


@torch.inference_mode()
def largest_difference(spec: ModelSpec, kv_dtype: torch.dtype) -> float:
    """Between both forms, with all that a model of this geometry has."""
    tried = dataclasses.replace(spec, num_layers=1, windows=(None,))
    layout = tried.kv_layout(
        num_blocks=1, block_size=TRIED_ROWS, dtype=str(kv_dtype).removeprefix("torch.")
    )
    cpu = torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    hidden, added = torch.randn(2, TRIED_ROWS, spec.hidden_size, generator=generator)
    weight = torch.randn(spec.hidden_size, generator=generator)
    qkv = torch.randn(TRIED_ROWS, heads + 2 * kv_heads, dim, generator=generator)
    norms = torch.randn(heads + kv_heads, dim, generator=generator)
    gate_up = torch.randn(TRIED_ROWS, 2 * spec.intermediate_size, generator=generator)
    table, places = torch.randn(9, spec.hidden_size, generator=generator), torch.arange(TRIED_ROWS)
    slots = places.flip(0)

    def results(form: type[NativeLayerOps] | type[TorchLayerOps]) -> list[Tensor]:
        cache = KvCache(layout, None, cpu)
        ops, own_hidden, own_qkv = form(tried, cache), hidden.clone(), qkv.clone()
        embedded, rotations = ops.embed(slots, table), ops.rotations(places)
        normed = ops.norm(own_hidden, added, weight)
        ops.rotate(0, own_qkv, norms, rotations, slots)
        kept = own_qkv[:, heads:].view(TRIED_ROWS, 2, kv_heads, dim).transpose(0, 1)
        lost = cache.layers[0][:, slots].float() - kept.to(kv_dtype).float()
        return [embedded, own_hidden, normed, own_qkv, lost, ops.gate(gate_up)]

    pairs = zip(results(NativeLayerOps), results(TorchLayerOps), strict=True)
    # torch's maximum: a NaN is larger than all.
    return float(torch.stack([(one - other).abs().max() for one, other in pairs]).max())
