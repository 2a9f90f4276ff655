"""The key by which a cluster knows its callers, and how it travels."""

import os

from penstock.errors import InvalidRequestError

VARIABLE = "PENSTOCK_API_KEY"

Metadata = tuple[tuple[str, str], ...]


def call_metadata(api_key: str | None) -> Metadata:
    """Makes what goes with every call; nothing where neither the caller nor the environment has a
    key. Raises InvalidRequestError for what cannot be one."""
    key = os.environ.get(VARIABLE, "") if api_key is None else api_key
    if not key:
        return ()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidRequestError(
            "The API key has letters that no key has: give it as 'penstock keys add' printed it.",
            metadata={"field": "api_key"},
        )
    return (("authorization", f"Bearer {key}"),)
