"""Attention over the paged KV cache, as a model uses it: the seam between what a layer computes and
how a device reads the cache. On a CPU it is `engine/paged_attention.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import Tensor

StepPlan: TypeAlias = Any  # of one step, for all layers; known to the attention that made it


class Query(NamedTuple):
    """Positions [start, start + num_new) of one sequence, whose K and V are in its blocks."""

    block_table: Sequence[int]
    start: int
    num_new: int


class Attention(Protocol):
    """Attends for one model: `plan` once a step, `attend` once a layer.

    Queries arrive scaled: the factor 1 / sqrt(head_dim) is part of the weights.
    """

    def plan(self, queries: Sequence[Query]) -> StepPlan:
        """The queries lie end to end in the step's batch."""

    def attend(self, layer: int, plan: StepPlan, qkv: Tensor, cache: Tensor) -> Tensor:
        """[num_tokens, num_heads * head_dim] from the fused projection, rotated,
        [num_tokens, num_heads + 2 * num_kv_heads, head_dim], and the layer's cache
        [2, num_slots, num_kv_heads, head_dim], which holds the new tokens too."""
