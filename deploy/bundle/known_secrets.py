"""Secrets that are known here, found again in whatever form they are written."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Final
from urllib.parse import quote

from cluster.secrets import Secrets

MIN_BYTES: Final = 6  # what is shorter is found everywhere
_MIN_LINE: Final = 32  # of a PEM: letters of its base64


class KnownSecrets:
    """Keeps secrets by name, which is all that is ever told of them."""

    def __init__(self, named: Mapping[str, bytes]) -> None:
        self.too_short = tuple(name for name, secret in named.items() if len(secret) < MIN_BYTES)
        self._forms = {
            form: name
            for name, secret in named.items()
            if name not in self.too_short
            for form in _forms(secret)
        }

    def found_in(self, data: bytes) -> str | None:
        """The name of one that is there."""
        return next((name for form, name in self._forms.items() if form in data), None)


def named_secrets(secrets: Secrets) -> dict[str, bytes]:
    """All that a cluster's secrets file holds."""
    named = {
        "the cluster token": secrets.cluster_token.encode(),
        "the hash secret": secrets.hash_secret,
        "the hash secret, as it is written": secrets.hash_secret.hex().encode(),
    }
    if secrets.store_password is not None:
        named["the store's password"] = secrets.store_password.encode()
    if secrets.authority is not None:
        for what, text in (
            ("the authority's key", secrets.authority.key),
            ("the authority's certificate", secrets.authority.certificate),
        ):
            lines = [line for line in text.splitlines() if len(line) >= _MIN_LINE]
            body = [line for line in lines if not line.startswith("-")]
            named |= {f"{what}, line {i}": line.encode() for i, line in enumerate(body)}
            named |= {f"{what}, bytes {i}": _decoded(line) for i, line in enumerate(body)}
    return named


def _decoded(line: str) -> bytes:
    try:
        return base64.b64decode(line[: len(line) // 4 * 4], validate=True)
    except ValueError:
        return line.encode()


def _forms(secret: bytes) -> Iterator[bytes]:
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    yield quote(secret).encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield from _within(secret, encode)
    if secret.isascii():
        yield json.dumps(secret.decode())[1:-1].encode()


def _within(secret: bytes, encode: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """Spells a secret as base64 of something longer has it: it begins at any of three places of a
    group."""
    for num_before, num_shared in ((0, 0), (1, 2), (2, 3)):
        whole = (num_before + len(secret)) // 3 * 4  # letters that nothing after it changes
        yield encode(bytes(num_before) + secret)[num_shared:whole]
