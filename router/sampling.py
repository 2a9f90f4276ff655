"""Says which part of all keys one belongs to: the same at every router, with nothing shared."""

import hashlib


def share_of(key: str, salt: int) -> float:
    """Says where a key lies in [0, 1); independent for each salt."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, salt=salt.to_bytes(8, "big")).digest()
    return int.from_bytes(digest, "big") / 2.0**64
