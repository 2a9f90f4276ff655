"""One matrix of a model, stored for the way it is used: few rows at a time, or many.

Knows nothing of what the matrix means.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# From two rows on oneDNN's packed copy is read up to 1.7 times faster than the plain matrix,
# which MKL would pack again in every step; from here on the packing no longer counts.
_PACKED_ROWS = range(2, 64)

_HAS_PACKED = bool(torch._C._has_mkldnn)
_PACKED_PRODUCT = torch.ops.mkldnn._linear_pointwise.default if _HAS_PACKED else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """x @ matrix (+ bias). Transposed storage is what a single row reads fastest."""

    matrix: Tensor  # [num_inputs, num_outputs]
    bias: Tensor | None = None
    packed: Tensor | None = None  # the same, opaque, for `_PACKED_ROWS`

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is not None and x.shape[0] in _PACKED_ROWS:
            return self._of_packed(x)
        if self.bias is None:
            return torch.mm(x, self.matrix)
        return torch.addmm(self.bias, x, self.matrix)

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        if self.packed is not None and x.shape[0] in _PACKED_ROWS:
            return self._of_packed(x).add_(residual)
        if self.bias is not None:
            residual = residual + self.bias
        return torch.addmm(residual, x, self.matrix)

    def _of_packed(self, x: Tensor) -> Tensor:
        assert _PACKED_PRODUCT is not None  # else nothing was packed
        product: Tensor = _PACKED_PRODUCT(x, self.packed, self.bias, "none", [], "")
        return product


def make_linear(weight: Tensor, bias: Tensor | None = None, *, has_packed: bool) -> Linear:
    """From a checkpoint's [num_outputs, num_inputs]. `has_packed` keeps a second copy."""
    return Linear(
        matrix=weight.t().contiguous(),
        bias=bias,
        packed=torch.ops.mkldnn._reorder_linear_weight(weight, 16) if has_packed else None,
    )


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    return dtype is torch.float32 and device.type == "cpu" and _HAS_PACKED
