"""The engine's fake: same surface as the real one, no torch, and stricter about its cache.

Each slot of its KV pool keeps a digest of all tokens up to that position. A forward checks
every slot of its context before it writes, so a block that was reused too early, a hand-over
that is short, or a wrong block table fails at once instead of giving a wrong token.
"""

import struct
from collections.abc import Callable
from hashlib import blake2b

from cluster.types import KvLayout, SampledToken, SamplingParams, TokenLogprob
from engine.batch import Batch, BatchRow, RowResult
from engine.sequence import Sequence

_DIGEST_BYTES = 8


def echo_layout(
    *,
    num_blocks: int,
    block_size: int,
    num_layers: int = 2,
    windows: tuple[int | None, ...] = (),
) -> KvLayout:
    return KvLayout(
        num_layers=num_layers,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=1,
        head_dim=2,
        dtype="float32",
        windows=windows,
    )


class CacheCorrupted(AssertionError):
    """A slot does not hold the KV of the token that should lie there."""


class EchoEngine:
    """Draws tokens that depend on the whole context, and on (seed, choice) when not greedy."""

    def __init__(
        self,
        layout: KvLayout,
        kv_buffer: memoryview | bytearray | None = None,
        *,
        vocab_size: int = 256,
        before_layer: Callable[[int], None] | None = None,
    ) -> None:
        """`before_layer(layer)` is called on the engine's thread: tests stop it there."""
        self.layout = layout
        self.vocab_size = vocab_size
        self._pool = memoryview(
            kv_buffer if kv_buffer is not None else bytearray(layout.pool_bytes)
        )
        self._before_layer = before_layer

    def forward(
        self, batch: Batch, layer_done: Callable[[int], None] | None = None
    ) -> list[RowResult]:
        self._copy_blocks(batch)
        chains = [_chain(row.sequence.token_ids(0, row.stop)) for row in batch.rows]
        for layer in range(self.layout.num_layers):
            if self._before_layer is not None:
                self._before_layer(layer)
            for row, chain in zip(batch.rows, chains, strict=True):
                self._check_context(layer, row, chain)
                for position in range(row.start, row.stop):
                    self._write(layer, row.sequence, position, chain[position])
            if layer_done is not None:
                layer_done(layer)
        return [self._draw(row, chain[-1]) for row, chain in zip(batch.rows, chains, strict=True)]

    def _check_context(self, layer: int, row: BatchRow, chain: list[bytes]) -> None:
        oldest = max(0, row.start + 1 - (self.layout.window(layer) or row.stop))
        for position in range(oldest, row.start):
            for plane in self._planes(layer):
                start = self._offset(plane, row.sequence, position)
                if bytes(self._pool[start : start + _DIGEST_BYTES]) != chain[position]:
                    raise CacheCorrupted(
                        f"{row.sequence.sequence_id}: layer {layer}, position {position}"
                    )

    def _write(self, layer: int, sequence: Sequence, position: int, digest: bytes) -> None:
        for plane in self._planes(layer):
            start = self._offset(plane, sequence, position)
            self._pool[start : start + _DIGEST_BYTES] = digest

    def _planes(self, layer: int) -> range:
        first = layer * self.layout.num_planes
        return range(first, first + self.layout.num_planes)

    def _offset(self, plane: int, sequence: Sequence, position: int) -> int:
        layout = self.layout
        block = sequence.block_table[position // layout.block_size]
        slot = block * layout.block_size + position % layout.block_size
        return plane * layout.plane_bytes + slot * layout.slot_bytes

    def _copy_blocks(self, batch: Batch) -> None:
        size = self.layout.block_bytes
        for base in range(0, self.layout.pool_bytes, self.layout.plane_bytes):
            for source, target in batch.copies:
                block = bytes(self._pool[base + source * size : base + (source + 1) * size])
                self._pool[base + target * size : base + (target + 1) * size] = block

    def _draw(self, row: BatchRow, digest: bytes) -> RowResult:
        sampling = row.sequence.params.sampling
        prompt_logprobs: tuple[TokenLogprob, ...] = ()
        if row.want_prompt_logprobs:
            stop = min(row.stop + 1, len(row.sequence.prompt_ids))
            ids = row.sequence.prompt_ids[row.start + 1 : stop]
            prompt_logprobs = tuple(TokenLogprob(token_id=i, logprob=-1.0) for i in ids)
        tokens = []
        for choice in row.choices:
            key = b"" if sampling.temperature == 0 else struct.pack("<QI", sampling.seed, choice)
            drawn = blake2b(digest + key, digest_size=4).digest()
            token_id = int.from_bytes(drawn, "little") % self.vocab_size
            while token_id in sampling.stop_token_ids and self._is_too_short(row.sequence):
                token_id = (token_id + 1) % self.vocab_size
            tokens.append(SampledToken(token_id=token_id, logprob=_logprob(sampling, token_id)))
        return RowResult(tokens=tuple(tokens), prompt_logprobs=prompt_logprobs)

    def _is_too_short(self, sequence: Sequence) -> bool:
        return len(sequence.output_ids) < sequence.params.sampling.min_tokens


def _logprob(sampling: SamplingParams, token_id: int) -> TokenLogprob | None:
    if sampling.num_logprobs is None:
        return None
    return TokenLogprob(token_id=token_id, logprob=-1.0)


def _chain(token_ids: list[int]) -> list[bytes]:
    digests: list[bytes] = []
    last = b""
    for token_id in token_ids:
        last = blake2b(last + token_id.to_bytes(4, "little"), digest_size=_DIGEST_BYTES).digest()
        digests.append(last)
    return digests
