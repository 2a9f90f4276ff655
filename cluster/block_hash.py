"""The chained, keyed hash of a prompt's grains: 128 bits, the same in engine, index and events.

A grain is a fixed run of `hash_grain` tokens; its hash covers all tokens before it, so equal
hashes mean equal prefixes. The key keeps tenants, cache scopes, models and adapters apart.
"""

import hmac
import struct
from collections.abc import Sequence
from hashlib import blake2b

from cluster.types import GrainHash

HASH_BYTES = 16


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
    hashes: list[GrainHash] = []
    last = parent or b""
    pack = struct.Struct(f"<{hash_grain}I").pack
    for start in range(0, len(token_ids) - hash_grain + 1, hash_grain):
        grain = pack(*token_ids[start : start + hash_grain])
        last = blake2b(last + grain, key=key, digest_size=HASH_BYTES).digest()
        hashes.append(GrainHash(last))
    return hashes
