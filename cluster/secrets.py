"""The two secrets that the processes of one cluster share, in one file that only its owner reads.

The cluster token proves that a caller is one of us; the hash secret keys the block hashes.
"""

import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from cluster.errors import ConfigError

_KEYS = {"cluster_token", "hash_secret"}
_MIN_CHARS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """Neither is ever printed: the repr shows that they are there."""

    cluster_token: str = field(repr=False)
    hash_secret: bytes = field(repr=False)


def create_secrets(path: Path) -> Secrets:
    """Draws new secrets and writes them with mode 0600. An existing file is never replaced."""
    drawn = {"cluster_token": secrets.token_urlsafe(32), "hash_secret": secrets.token_hex(32)}
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists: load it, or delete it to draw new secrets.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        yaml.safe_dump(drawn, file)
    return Secrets(
        cluster_token=drawn["cluster_token"], hash_secret=bytes.fromhex(drawn["hash_secret"])
    )


def load_secrets(path: Path) -> Secrets:
    """Raises ConfigError unless the file is whole and its owner's alone."""
    try:
        with path.open("rb") as file:
            _check_private(path, os.fstat(file.fileno()))
            text = file.read()
    except OSError as error:
        raise ConfigError(f"The secrets file {path} cannot be read: {error.strerror}.") from error
    return _parsed(path, text)


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"The secrets file {path} is not a regular file.")
    if status.st_mode & 0o077:
        raise ConfigError(
            f"The secrets file {path} has mode {stat.S_IMODE(status.st_mode):04o}: others can read "
            f"or change it. Run: chmod 600 {path}"
        )


def _parsed(path: Path, text: bytes) -> Secrets:
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError:
        loaded = None  # the message of YAML's error would quote the file
    if not isinstance(loaded, dict) or loaded.keys() != _KEYS:
        raise ConfigError(f"The secrets file {path} must hold cluster_token and hash_secret.")
    token, hash_secret = loaded["cluster_token"], loaded["hash_secret"]
    if not (_is_secret(token) and token.isascii() and token.isprintable()):
        raise ConfigError(f"cluster_token in {path} must be {_MIN_CHARS} or more ASCII letters.")
    try:
        decoded = bytes.fromhex(hash_secret if _is_secret(hash_secret) else "")
    except ValueError:
        decoded = b""
    if not decoded:
        raise ConfigError(f"hash_secret in {path} must be {_MIN_CHARS} or more hex digits, quoted.")
    return Secrets(cluster_token=token, hash_secret=decoded)


def _is_secret(value: object) -> bool:
    return isinstance(value, str) and len(value) >= _MIN_CHARS
