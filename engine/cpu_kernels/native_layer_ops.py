"""What layers compute between their products and attention, by a kernel for this processor: one
call each for all rows, on torch's own threads where there is enough to do.

`layer_ops.cpp` here is the kernel. Whether it serves is not known here.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from cluster.compiled import library
from engine.cpu_kernels.torch_threads import openmp_entry
from engine.kv_cache import KvCache
from engine.layers.rope import attention_scale, inverse_frequencies
from engine.model_spec import ModelSpec

SOURCE = Path(__file__).with_name("layer_ops.cpp")
_KV_TYPES = {torch.float32: "float", torch.bfloat16: "BFloat16", torch.float16: "Float16"}
_POINTER, _NUMBER = (ctypes.c_void_p,), (ctypes.c_int64,)
_TEAM = (*_POINTER, *_NUMBER)


class NativeLayerOps:
    """Computes in float32."""

    def __init__(self, spec: ModelSpec, cache: KvCache) -> None:
        """*Raises* CompileError or NoKernelError where the kernel cannot be had."""
        kernel = library(SOURCE, f"KV={_KV_TYPES[cache.dtype]}")
        self._embed, self._rotations = kernel.layer_embed, kernel.layer_rotations
        self._norm, self._rotate = kernel.layer_norm, kernel.layer_rotate
        self._gate = kernel.layer_gate
        self._embed.argtypes = [*_POINTER * 2, *_NUMBER, *_POINTER, *_NUMBER * 2, *_TEAM]
        self._rotations.argtypes = [*_POINTER * 3, *_NUMBER * 2, ctypes.c_float, *_TEAM]
        self._norm.argtypes = [*_POINTER * 4, *_NUMBER * 2, ctypes.c_float, *_TEAM]
        self._rotate.argtypes = [*_POINTER * 6, *_NUMBER * 4, ctypes.c_float, *_TEAM]
        self._gate.argtypes = [*_POINTER * 2, *_NUMBER * 2, *_TEAM]
        self._embed.restype = ctypes.c_bool
        for function in (self._rotations, self._norm, self._rotate, self._gate):
            function.restype = None
        self._parallel = openmp_entry()
        self._frequencies = inverse_frequencies(spec.rope, spec.head_dim)
        self._scale = attention_scale(spec.rope)
        self._eps = spec.rms_norm_eps
        self._heads = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self._planes = [[plane.data_ptr() for plane in layer] for layer in cache.layers]

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        num_known, size = table.shape
        out = torch.empty(len(token_ids), size)
        if not self._embed(*_at(token_ids, table), num_known, *_at(out), *out.shape, *self._team()):
            raise IndexError(f"the model knows {num_known} tokens: one of the batch is beyond")
        return out

    def rotations(self, positions: Tensor) -> Tensor:
        num_tokens, dim = len(positions), self._heads[-1]
        out = torch.empty(num_tokens, 2, dim)
        places = _at(positions, self._frequencies, out)
        self._rotations(*places, num_tokens, dim, self._scale, *self._team())
        return out

    def norm(self, hidden: Tensor, added: Tensor | None, weight: Tensor) -> Tensor:
        out = torch.empty_like(hidden)
        self._norm(*_at(hidden, added, weight, out), *hidden.shape, self._eps, *self._team())
        return out

    def rotate(
        self, layer: int, qkv: Tensor, norms: Tensor | None, rotations: Tensor, slots: Tensor
    ) -> None:
        places = *_at(qkv, norms, rotations, slots), *self._planes[layer]
        self._rotate(*places, len(qkv), *self._heads, self._eps, *self._team())

    def gate(self, gate_up: Tensor) -> Tensor:
        num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(num_tokens, size)
        self._gate(*_at(gate_up, out), num_tokens, size, *self._team())
        return out

    def _team(self) -> tuple[int, int]:
        return self._parallel, torch.get_num_threads()


def _at(*tensors: Tensor | None) -> list[int | None]:
    return [None if each is None else each.data_ptr() for each in tensors]
