"""The chained, keyed hash of a prompt's grains: 128 bits, the same in engine, index and events.

A grain is a fixed run of `hash_grain` tokens; its hash covers all tokens before it, so equal
hashes mean equal prefixes. The key keeps tenants, cache scopes, models and adapters apart.
"""

import hmac
import struct
import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b
from itertools import chain

from cluster.types import GrainHash

HASH_BYTES = 16
_RUN = struct.Struct(f"{HASH_BYTES}s" * 256)  # unpacked in one go


def hash_key(
    secret: bytes, *, tenant: str, cache_scope: str, model_digest: str, adapter: str = ""
) -> bytes:
    """32 bytes: HMAC-SHA256 of (tenant, scope, model, adapter) under the cluster secret."""
    parts = (tenant, cache_scope, model_digest, adapter)
    encoded = b"".join(struct.pack("<I", len(part.encode())) + part.encode() for part in parts)
    return hmac.digest(secret, encoded, "sha256")


def grain_hashes(
    key: bytes, token_ids: Sequence[int], hash_grain: int, *, parent: GrainHash | None = None
) -> list[GrainHash]:
    """The chain hashes of the complete grains of `token_ids`, which follow grain `parent`."""
    num_bytes = 4 * hash_grain
    packed = _packed(token_ids[: len(token_ids) // hash_grain * hash_grain])
    keyed = blake2b(key=key, digest_size=HASH_BYTES).copy  # once keyed, a copy is cheaper
    hashes: list[GrainHash] = []
    last = parent or b""
    for start in range(0, len(packed), num_bytes):
        state = keyed()
        state.update(last + packed[start : start + num_bytes])
        last = state.digest()
        hashes.append(GrainHash(last))
    return hashes


def split_hashes(packed: bytes) -> tuple[GrainHash, ...]:
    """Hashes that lie one after another; what is left over at the end is no hash."""
    stop = len(packed) // _RUN.size * _RUN.size
    rest = f"{HASH_BYTES}s" * ((len(packed) - stop) // HASH_BYTES)
    runs = chain.from_iterable(_RUN.iter_unpack(packed[:stop]))
    return (*runs, *struct.unpack_from(rest, packed, stop))


def _packed(token_ids: Sequence[int]) -> bytes:
    """Four bytes each, the lowest first."""
    words = array("I", token_ids)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
