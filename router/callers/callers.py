"""Says who a caller is. Both front doors ask here, and whatever they let in has passed here.

Knows no file and no protocol: it is given keys, and the headers that came.
"""

import hmac
from collections.abc import Sequence
from typing import Final

from cluster.errors import Unauthenticated
from router.callers.key_file import ANYBODY, ApiKey, KeyTable, hash_of

HEADER: Final = "authorization"
_MAX_CHARS: Final = 1024  # of a header: ours have 54
_SCHEME: Final = "bearer"
_FOUND_BY: Final = 8  # bytes of a hash
_HOW: Final = "send 'authorization: Bearer KEY' with a key of this cluster's operator"
_UNKNOWN: Final = (
    "This API key is not known here: it is mistyped, or was revoked. Ask the operator of this"
    " cluster for another."
)


class Callers:
    """The keys in force; None: there are none to show, and everybody is the same tenant."""

    def __init__(self, table: KeyTable | None = None) -> None:
        self.num_refused = 0
        self.error = ""  # why the keys in force are not what their file says; empty: they are
        self.table: KeyTable | None = None
        self._by_hash: dict[bytes, list[tuple[bytes, ApiKey]]] = {}
        if table is not None:
            self.put_in_force(table)

    @property
    def are_asked(self) -> bool:
        return self.table is not None

    def put_in_force(self, table: KeyTable) -> None:
        """From the next request on; what is in flight goes on."""
        by_hash: dict[bytes, list[tuple[bytes, ApiKey]]] = {}
        for key in table.keys:
            hashed = bytes.fromhex(key.api_key_sha256)
            by_hash.setdefault(hashed[:_FOUND_BY], []).append((hashed, key))
        self.table, self._by_hash = table, by_hash

    def identify(self, headers: Sequence[str]) -> ApiKey:
        """Finds whose key came, of all values of the `authorization` header. Raises
        Unauthenticated."""
        if self.table is None:
            return ANYBODY
        try:
            return self._identify(headers)
        except Unauthenticated:
            self.num_refused += 1
            raise

    def _identify(self, headers: Sequence[str]) -> ApiKey:
        if len(headers) != 1:
            what = f"{len(headers)} headers" if headers else "No API key"
            raise Unauthenticated(f"{what} came to say who calls: {_HOW}.")
        scheme, _, shown = headers[0].partition(" ")
        if scheme.lower() != _SCHEME or len(shown) > _MAX_CHARS:
            raise Unauthenticated(f"This 'authorization' header holds no API key: {_HOW}.")
        hashed = hash_of(shown.strip().encode(errors="replace"))
        # Which entry is found says something of the hash alone, of which nobody learns the key.
        for known, key in self._by_hash.get(hashed[:_FOUND_BY], ()):
            if hmac.compare_digest(known, hashed):
                return key
        raise Unauthenticated(_UNKNOWN)
