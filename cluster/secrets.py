"""The secrets that the processes of one cluster share, in one file that only its owner reads.

The cluster token proves that a caller is one of us; the hash secret keys the block hashes; the
store password opens the Redis, where there is one that wants it; the authority signs what processes
show to each other under TLS.
"""

import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cluster.authority import Authority, create_authority
from cluster.errors import ConfigError
from cluster.private_file import read_private, write_private

_KEYS = {"cluster_token", "hash_secret"}
_OPTIONAL = {"store_password", "authority"}
_WHAT = "secrets file"
_MIN_CHARS = 16
_MAX_BYTES = 1 << 16
_MAX_PASSWORD_CHARS = 1024
_MAX_PEM_CHARS = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """None is ever printed: the repr shows that they are there."""

    cluster_token: str = field(repr=False)
    hash_secret: bytes = field(repr=False)
    store_password: str | None = field(default=None, repr=False)
    authority: Authority | None = None  # None: what it would sign is not shown


def create_secrets(path: Path, *, with_authority: bool = True) -> Secrets:
    """Draws new secrets and writes them with mode 0600. An existing file is never replaced. What
    stays on one machine needs no authority, and starts sooner without."""
    drawn: dict[str, Any] = {
        "cluster_token": secrets.token_urlsafe(32),
        "hash_secret": secrets.token_hex(32),
    }
    if with_authority:
        drawn["authority"] = asdict(create_authority())
    text = yaml.safe_dump(drawn).encode()
    _write_new(path, text)
    return _parsed(path, text)


def copy_secrets(source: Path, path: Path) -> Secrets:
    """Copies the secrets as they are now, for who goes on with them whatever happens to the
    file."""
    text = read_private(source, _WHAT, _MAX_BYTES)
    found = _parsed(source, text)
    _write_new(path, text)
    return found


def load_secrets(path: Path) -> Secrets:
    """Raises ConfigError unless the file is whole and its owner's alone."""
    return _parsed(path, read_private(path, _WHAT, _MAX_BYTES))


def _write_new(path: Path, text: bytes) -> None:
    try:
        write_private(path, text)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists: load it, or delete it to draw new secrets.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error


def _parsed(path: Path, text: bytes) -> Secrets:
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError:
        loaded = None  # the message of YAML's error would quote the file
    if not isinstance(loaded, dict) or loaded.keys() - _OPTIONAL != _KEYS:
        raise ConfigError(
            f"The secrets file {path} must hold cluster_token and hash_secret, and may hold"
            " store_password and an authority."
        )
    token, hash_secret = loaded["cluster_token"], loaded["hash_secret"]
    if not (_is_secret(token) and token.isascii() and token.isprintable()):
        raise ConfigError(f"cluster_token in {path} must be {_MIN_CHARS} or more ASCII letters.")
    try:
        decoded = bytes.fromhex(hash_secret if _is_secret(hash_secret) else "")
    except ValueError:
        decoded = b""
    if not decoded:
        raise ConfigError(f"hash_secret in {path} must be {_MIN_CHARS} or more hex digits, quoted.")
    password = loaded.get("store_password")
    if not (password is None or _is_password(password)):
        raise ConfigError(
            f"store_password in {path} must be a text of at most {_MAX_PASSWORD_CHARS} characters,"
            " in quotes."
        )
    return Secrets(
        cluster_token=token,
        hash_secret=decoded,
        store_password=password,
        authority=_authority(path, loaded.get("authority")),
    )


def _authority(path: Path, given: object) -> Authority | None:
    """Reads an authority; what it is worth is seen when it first signs."""
    match given:
        case None:
            return None
        case {"certificate": str(certificate), "key": str(key), **rest} if not rest:
            if _is_pem(certificate) and _is_pem(key):
                return Authority(certificate=certificate, key=key)
    raise ConfigError(
        f"authority in {path} must have a certificate and its key, as PEM: 'penstock secrets' draws"
        " them."
    )


def _is_secret(value: object) -> bool:
    return isinstance(value, str) and len(value) >= _MIN_CHARS


def _is_pem(text: str) -> bool:
    return text.startswith("-----BEGIN ") and text.isascii() and len(text) <= _MAX_PEM_CHARS


def _is_password(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_PASSWORD_CHARS
