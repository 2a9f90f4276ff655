"""The geometry of a model, as values. Knows no torch and no weights; `engine/models/` reads it from
a checkpoint's config.json.
"""

from dataclasses import dataclass
from enum import StrEnum

from cluster.types import KvLayout


class RopeKind(StrEnum):
    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary frequencies: `kind` says which of the fields count."""

    kind: RopeKind = RopeKind.DEFAULT
    theta: float = 10_000.0
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rms_norm_eps: float
    rope: RopeSpec
    windows: tuple[int | None, ...]  # by layer: how many tokens it sees, itself included
    is_tied: bool  # the output head is the embedding, where the weights do not say otherwise
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    end_token_ids: tuple[int, ...] = ()

    def kv_layout(self, *, num_blocks: int, block_size: int, dtype: str = "float32") -> KvLayout:
        """Geometry of a KV pool for this model."""
        return KvLayout(
            num_layers=self.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=dtype,
            windows=self.windows if any(self.windows) else (),
        )

    @property
    def num_parameters(self) -> int:
        attention = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        layer = self.hidden_size * (attention + 3 * self.intermediate_size)
        return self.num_layers * layer + self.vocab_size * self.hidden_size * (2 - self.is_tied)
