"""Says where a worker keeps KV, as whoever lends it, borrows it and fetches it sees it: whichever
engine computes. Today it is the engine's block pool.
"""

from collections.abc import Sequence
from typing import Protocol

from cluster.types import BlockId, GrainHash


class KvHome(Protocol):
    """Blocks of `block_size` tokens, each with a number of references."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    @property
    def hash_grain(self) -> int:
        """Tokens that share one hash: a multiple of the block size, or a part of it."""

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""

    @property
    def num_available(self) -> int:
        """Blocks that nobody has a reference to, cached ones among them."""

    def match(self, hashes: Sequence[GrainHash], num_tokens: int) -> list[BlockId]:
        """The blocks of the longest prefix that is cached here."""

    def hold(self, blocks: Sequence[BlockId]) -> None:
        """One reference more for each; the scheduler's `release` takes it back."""

    def allocate(self, num: int, *, after: BlockId | None = None) -> list[BlockId] | None:
        """Gives so many blocks with a reference each; None where there are fewer."""

    def store(
        self,
        hashes: Sequence[GrainHash],
        block_table: Sequence[BlockId],
        first: int,
        *,
        whole_from: int = 0,
    ) -> int:
        """Makes what complete blocks from `first` on hold findable; returns the next first."""

    def whole_from(self, blocks: Sequence[BlockId]) -> int:
        """Tokens before this one lack KV in layers with a sliding window."""
