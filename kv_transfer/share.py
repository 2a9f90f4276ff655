"""Which part of a range of tokens moves from one pool into another.

Of the heads, those that both hold; of a layer with a sliding window, the tokens that a later
position can still see. Both ends derive it from the two layouts and the grant.
"""

from dataclasses import dataclass

from cluster.fingerprint import layout_mismatch
from cluster.types import KvLayout, first_visible
from kv_transfer.conversion import Conversion, conversion_between


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Raises ValueError where nothing can move between such pools."""

    source: KvLayout
    destination: KvLayout
    wire_dtype: str | None = None  # what the receiver lets KV be narrowed to

    def __post_init__(self) -> None:
        problems = layout_mismatch(self.source, self.destination)
        if not self.heads:
            problems.append(f"heads: {self.source.heads} and {self.destination.heads}")
        if problems:
            raise ValueError(f"KV cannot move between these pools: {'; '.join(problems)}.")
        _ = self.conversion

    @property
    def heads(self) -> range:
        ours, theirs = self.source.heads, self.destination.heads
        return range(max(ours.start, theirs.start), min(ours.stop, theirs.stop))

    @property
    def conversion(self) -> Conversion | None:
        """None where the bytes of both pools are the same."""
        ours, theirs = self.source.dtype, self.destination.dtype
        return conversion_between(ours, theirs, self.source.head_dim, wire_dtype=self.wire_dtype)

    @property
    def is_lossless(self) -> bool:
        return self.conversion is None or self.conversion.is_lossless

    def first(self, layer: int, start: int, stop: int) -> int:
        """The first of tokens [start, stop) that travels in this layer."""
        return max(start, first_visible(self.source.window(layer), stop))

    def whole_from(self, start: int, stop: int) -> int:
        """The first of tokens [start, stop) that travels in every layer."""
        return max(self.first(layer, start, stop) for layer in range(self.source.num_layers))

    def first_of_windows(self, start: int, stop: int) -> int:
        """The first of tokens [start, stop) that travels in a layer with a window; `stop` where
        none has one."""
        windows = filter(None, self.source.windows)
        return min((max(start, first_visible(window, stop)) for window in windows), default=stop)

    def num_bytes(self, start: int, stop: int) -> int:
        """Bytes read from the source's pool, of all layers and planes."""
        layers = range(self.source.num_layers)
        num_tokens = sum(stop - self.first(layer, start, stop) for layer in layers)
        row_bytes = len(self.heads) * self.source.head_bytes
        return num_tokens * self.source.num_planes * row_bytes
