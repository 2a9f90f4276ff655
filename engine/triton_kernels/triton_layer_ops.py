"""What the layers of a decoder compute between their products and attention, by Triton's kernels:
one launch each. Whether they serve is not known here.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding

from engine.kv_cache import KvCache
from engine.layers.rope import Rope
from engine.model_spec import ModelSpec
from engine.triton_kernels.door import check_device, launch, power_of_2
from engine.triton_kernels.layer_kernels import add_and_norm, gate_and_multiply, rotate_and_keep

_GATED_PLACES = 1024  # a program


class TritonLayerOps:
    def __init__(self, spec: ModelSpec, cache: KvCache) -> None:
        """*Raises* NoKernelError."""
        check_device(cache.device)
        self._spec = spec
        self._cache = cache
        self._rope = Rope(spec, cache.device)

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return embedding(token_ids, table)

    def rotations(self, positions: Tensor) -> Tensor:
        """float32 [num_tokens, 1, head_dim / 2, 2]"""
        return torch.view_as_real(self._rope.rotations(positions))

    def norm(self, hidden: Tensor, added: Tensor | None, weight: Tensor) -> Tensor:
        num_tokens, size = hidden.shape
        output = torch.empty_like(hidden)
        launch(
            add_and_norm,
            (num_tokens,),
            hidden,
            hidden if added is None else added,
            weight,
            output,
            self._spec.rms_norm_eps,
            SIZE=size,
            PADDED_SIZE=power_of_2(size),
            HAS_ADDED=added is not None,
            num_warps=8 if size >= 4096 else 4,
        )
        return output

    def rotate(
        self, layer: int, qkv: Tensor, norms: Tensor | None, rotations: Tensor, slots: Tensor
    ) -> None:
        spec, cache = self._spec, self._cache.layers[layer]
        launch(
            rotate_and_keep,
            (qkv.shape[0], qkv.shape[1]),
            qkv,
            qkv if norms is None else norms,
            rotations,
            slots,
            cache,
            cache.stride(0),
            spec.rms_norm_eps,
            NUM_HEADS=spec.num_heads,
            NUM_KV_HEADS=spec.num_kv_heads,
            DIM=spec.head_dim,
            PADDED_PAIRS=power_of_2(spec.head_dim // 2),
            HAS_NORMS=norms is not None,
            num_warps=1,
        )

    def gate(self, gate_up: Tensor) -> Tensor:
        num_tokens, size = len(gate_up), gate_up.shape[1] // 2
        output = gate_up.new_empty(num_tokens, size)
        grid = num_tokens, -(-size // _GATED_PLACES)
        launch(
            gate_and_multiply, grid, gate_up, output, size, NUM_PLACES=_GATED_PLACES, num_warps=4
        )
        return output
