"""Keys made from the cluster's token, and what is proven with them: HMAC-SHA256 throughout.

Each use has a key of its own, so that what is shown for one is worth nothing for another.
"""

import hmac

MAC_BYTES = 32


def derived_key(token: str, use: str) -> bytes:
    """Makes the key that all holders of the cluster's token share for one use."""
    return hmac.digest(token.encode(), b"penstock key: " + use.encode(), "sha256")


def mac(key: bytes, what: str, *parts: bytes) -> bytes:
    """Proves, to who has the key, that a holder of it said these parts, as `what`."""
    # With their lengths: no two lists of parts are the same bytes.
    said = b"".join(len(part).to_bytes(8, "big") + part for part in (what.encode(), *parts))
    return hmac.digest(key, said, "sha256")


def is_mac(given: bytes, key: bytes, what: str, *parts: bytes) -> bool:
    """Tells whether `given` proves it. Takes as long for any wrong one."""
    return hmac.compare_digest(given, mac(key, what, *parts))
