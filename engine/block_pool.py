"""The blocks of one worker's KV pool: who holds them, and what cached content they keep.

Pure accounting: knows neither tensors nor requests. A block is *free* (no content), *held*
(references above zero) or *cached* (content that nobody holds; evicted leaf first, least
recently used first). Cached blocks count as free for whoever asks for room.

A *thin* block lacks KV in layers with a sliding window: it came from another worker, and nobody
who went on from where it ended could see that part. It serves whoever goes on behind enough
whole blocks.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from cluster.types import BlockId, CacheChange, GrainHash, first_visible
from engine.tail_reuse import TailReuse

_TAKEN, _FREE, _CLAIMED = 0, 1, 2  # _CLAIMED: free, but a growing neighbour hopes for it
_UNCLAIM = bytes([_TAKEN, _FREE, _FREE]) + bytes(range(3, 256))

_Key = tuple[GrainHash, int]  # chain hash of the block's last grain, part within that grain


class BlockPool:
    """Owns every block's state. `check()` states the invariant."""

    def __init__(
        self, num_blocks: int, block_size: int, hash_grain: int, *, window: int | None = None
    ) -> None:
        """`window` is the widest that a layer has: tokens that it sees, itself included."""
        if block_size % hash_grain and hash_grain % block_size:
            raise ValueError(f"block size {block_size} and hash grain {hash_grain} do not nest")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.hash_grain = hash_grain
        self._grains_per_block = max(1, block_size // hash_grain)
        self._blocks_per_grain = max(1, hash_grain // block_size)
        self._map = bytearray([_FREE]) * num_blocks
        self._num_free = num_blocks
        self._references = [0] * num_blocks
        self._block_of: dict[_Key, BlockId] = {}
        self._key_of: dict[BlockId, _Key] = {}
        self._grains_of: dict[BlockId, tuple[GrainHash, ...]] = {}
        self._parts: dict[GrainHash, int] = {}  # blocks of a grain present, if several make one
        # least recently used first -> how old the cache was then
        self._cached: OrderedDict[BlockId, int] = OrderedDict()
        self._tail = TailReuse(num_blocks)
        self._window = window
        self._thin: set[BlockId] = set()
        self._stored: list[GrainHash] = []
        self._evicted: list[GrainHash] = []

    # -- looking ----------------------------------------------------------------------------

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could give: free and cached ones."""
        return self._num_free + len(self._cached)

    @property
    def num_free(self) -> int:
        """Blocks without content: taking them evicts nothing."""
        return self._num_free

    @property
    def tail_reuse(self) -> float:
        """Share of the cached blocks that became old and were found again: what evicting costs."""
        return self._tail.share

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_available

    def references(self, block: BlockId) -> int:
        return self._references[block]

    def has_grain(self, grain: GrainHash) -> bool:
        """Tells whether its content is findable, if what precedes it is."""
        return self._parts.get(grain, 0) == self._blocks_per_grain

    def match(self, hashes: Sequence[GrainHash], num_tokens: int) -> list[BlockId]:
        """The longest run of cached blocks, from the start, that lies within `num_tokens` and
        has all that whoever goes on from its end can see."""
        blocks: list[BlockId] = []
        for index in range(num_tokens // self.block_size):
            key = self._key(hashes, index)
            block = self._block_of.get(key) if key is not None else None
            if block is None:
                break
            blocks.append(block)
        return self._without_thin_end(blocks) if self._thin else blocks

    def whole_from(self, blocks: Sequence[BlockId]) -> int:
        """The first token behind the last thin block of a table."""
        thin = (index + 1 for index, block in enumerate(blocks) if block in self._thin)
        return max(thin, default=0) * self.block_size

    # -- taking and giving back --------------------------------------------------------------

    def hold(self, blocks: Iterable[BlockId]) -> None:
        """One more reference to each."""
        for block in blocks:
            if self._references[block] == 0:
                self._tail.found(self._cached[block], len(self._cached))
                del self._cached[block]
            self._references[block] += 1

    def allocate(
        self, num: int, *, after: BlockId | None = None, room: int = 0
    ) -> list[BlockId] | None:
        """`num` blocks with one reference each, or None when there are not enough.

        Adjacent blocks where possible: attention reads runs of them in place. `after` is the
        sequence's last block; `room` is how far it will probably grow, kept clear while it can.
        """
        if num > self.num_available:
            return None
        taken: list[BlockId] = []
        while len(taken) < num:
            after = self._next_block(after, num - len(taken), room)
            self._map[after] = _TAKEN
            self._num_free -= 1
            self._references[after] = 1
            taken.append(after)
        if room and taken:
            self._claim(taken[-1], room)
        return taken

    def release(self, blocks: Sequence[BlockId]) -> None:
        """One reference less for each block of a table, given in table order.

        The last block is cached first, so that a leaf is always evicted before its parent.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._key_of:
                self._cached[block] = self._tail.age
            else:
                self._free(block)
        if blocks:
            self._unclaim_after(blocks[-1])

    def touch(self, blocks: Sequence[BlockId]) -> None:
        """They count as used now, without being held: somebody waits who wants them."""
        for block in reversed(blocks):
            if not self._references[block]:
                self._tail.found(self._cached[block], len(self._cached))
                self._cached[block] = self._tail.age
                self._cached.move_to_end(block)

    # -- cached content ----------------------------------------------------------------------

    def store(
        self,
        hashes: Sequence[GrainHash],
        block_table: Sequence[BlockId],
        first: int,
        *,
        whole_from: int = 0,
    ) -> int:
        """Makes the content of complete blocks from `first` on findable; returns the next first.
        Blocks that begin before token `whole_from` are thin.

        Content that another block already stands for is left alone, unless that one is thin and
        this one is not.
        """
        index = first
        while index < len(block_table) and (key := self._key(hashes, index)) is not None:
            block = block_table[index]
            if index * self.block_size < whole_from:
                self._thin.add(block)
            if block not in self._key_of:
                known = self._block_of.get(key)
                if known is None:
                    self._remember(block, key, hashes, index)
                elif known in self._thin and block not in self._thin:
                    self._replace(known, block)
            index += 1
        return index

    def take_changes(self) -> CacheChange | None:
        """Gives what was stored and evicted since the last call; None when nothing was."""
        if not self._stored and not self._evicted:
            return None
        both = set(self._stored) & set(self._evicted)
        if both:  # came and went (or went and came): only the final state counts
            change = CacheChange(
                stored=tuple(h for h in dict.fromkeys(self._stored) if self.has_grain(h)),
                evicted=tuple(h for h in dict.fromkeys(self._evicted) if not self.has_grain(h)),
            )
        else:
            change = CacheChange(stored=tuple(self._stored), evicted=tuple(self._evicted))
        self._stored, self._evicted = [], []
        return change

    def grains(self) -> list[GrainHash]:
        """Every grain whose content is findable."""
        return [h for h, parts in self._parts.items() if parts == self._blocks_per_grain]

    def check(self) -> None:
        """Raises AssertionError unless free + held + cached is all, each block once."""
        held = sum(1 for count in self._references if count)
        free = sum(1 for state in self._map if state != _TAKEN)
        assert min(self._references, default=0) >= 0, "a block was released too often"
        assert free == self._num_free, (free, self._num_free)
        assert free + held + len(self._cached) == self.num_blocks, (free, held, len(self._cached))
        assert all(self._references[b] == 0 and self._map[b] == _TAKEN for b in self._cached)
        assert {b: k for k, b in self._block_of.items()} == self._key_of
        assert all(self._map[b] == _TAKEN for b in self._thin)

    # -- inside ------------------------------------------------------------------------------

    def _key(self, hashes: Sequence[GrainHash], index: int) -> _Key | None:
        """Identity of the `index`-th block's content; None while its grains are incomplete."""
        if self._blocks_per_grain > 1:
            grain, part = divmod(index, self._blocks_per_grain)
        else:
            grain, part = (index + 1) * self._grains_per_block - 1, 0
        return (hashes[grain], part) if grain < len(hashes) else None

    def _without_thin_end(self, blocks: list[BlockId]) -> list[BlockId]:
        size, num_kept = self.block_size, 0
        whole_from = 0  # the first token behind the last thin block so far
        for index, block in enumerate(blocks):
            stop = (index + 1) * size
            if block in self._thin:
                whole_from = stop
            if whole_from <= first_visible(self._window, stop):
                num_kept = index + 1
        return blocks[:num_kept]

    def _replace(self, old: BlockId, new: BlockId) -> None:
        """The same content, in another block. Whoever holds the old one keeps it."""
        key = self._key_of.pop(old)
        self._key_of[new] = key
        self._block_of[key] = new
        self._grains_of[new] = self._grains_of.pop(old)
        if old in self._cached:
            del self._cached[old]
            self._free(old)

    def _next_block(self, after: BlockId | None, wanted: int, room: int) -> BlockId:
        if after is not None and after + 1 < self.num_blocks and self._map[after + 1] != _TAKEN:
            return BlockId(after + 1)
        if not self._num_free:
            self._evict()
        if len(self._map) and self._map.find(_FREE) < 0:
            self._map = self._map.translate(_UNCLAIM)
        run = wanted + room
        while run > 1 and self._map.find(bytes([_FREE]) * run) < 0:
            run //= 2
        return BlockId(self._map.find(bytes([_FREE]) * run))

    def _claim(self, last: BlockId, room: int) -> None:
        for block in range(last + 1, min(last + 1 + room, self.num_blocks)):
            if self._map[block] != _FREE:
                return
            self._map[block] = _CLAIMED

    def _unclaim_after(self, last: BlockId) -> None:
        for block in range(last + 1, self.num_blocks):
            if self._map[block] != _CLAIMED:
                return
            self._map[block] = _FREE

    def _remember(self, block: BlockId, key: _Key, hashes: Sequence[GrainHash], index: int) -> None:
        self._block_of[key] = block
        self._key_of[block] = key
        last = index * self._grains_per_block + self._grains_per_block
        grains = (
            (key[0],)
            if self._blocks_per_grain > 1
            else tuple(hashes[last - self._grains_per_block : last])
        )
        self._grains_of[block] = grains
        for grain in grains:
            self._parts[grain] = self._parts.get(grain, 0) + 1
            if self.has_grain(grain):
                self._stored.append(grain)

    def _evict(self) -> None:
        block, _ = self._cached.popitem(last=False)
        self._tail.evicted()
        del self._block_of[self._key_of.pop(block)]
        for grain in self._grains_of.pop(block):
            if self.has_grain(grain):
                self._evicted.append(grain)
            self._parts[grain] -= 1
            if not self._parts[grain]:
                del self._parts[grain]
        self._free(block)

    def _free(self, block: BlockId) -> None:
        self._thin.discard(block)
        self._map[block] = _FREE
        self._num_free += 1
