"""The file of callers' keys: who holds one, and what he may. Of a key itself its SHA-256 is kept.

A fast hash is enough, and no salt is needed: a key is 256 random bits, so there is no dictionary to
try, as there is of passwords, and no two holders have the same. The file is JSON, for a program
writes it (`penstock keys`), and it is read while requests are served: YAML of 4,096 keys would take
seconds of the interpreter, this takes 35 ms; and a fault is told by line and column, unquoted.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from cluster.bounds import check_name
from cluster.config import check_range, parse_config
from cluster.errors import ConfigError
from cluster.private_file import read_private, replace_private
from router.policy_settings import DEFAULT_TENANT

PREFIX: Final = "psk-"  # so that programs that look for lost secrets know one
MAX_KEYS: Final = 4096
MAX_FILE_BYTES: Final = 2 << 20
_WHAT: Final = "file of API keys"
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_SHOWN: Final = re.compile(rf"{PREFIX}[\w-]*")
_MOST: Final = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key: its name, whose it is, and what he may. None is without bound."""

    id: str  # names it in logs and commands; says nothing of the key
    tenant: str  # whose share, whose cache
    api_key_sha256: str = field(repr=False)  # hexadecimal
    service_class: str | None = None  # all his requests are of this class of the policy
    max_requests_per_minute: int | None = None
    max_tokens_per_minute: int | None = None  # of prompts and answers together
    max_in_flight: int | None = None  # at each router
    created: str = ""  # when, for people

    def __post_init__(self) -> None:
        check_name(self.id, "key")
        check_name(self.tenant, "tenant")
        if self.service_class is not None:
            check_name(self.service_class, "class")
        if not _HASH.fullmatch(self.api_key_sha256):
            raise ValueError(
                "'api_key_sha256' must be 64 hexadecimal digits, the SHA-256 of a key: 'penstock"
                " keys add' draws a key and writes it."
            )
        for name in ("max_requests_per_minute", "max_tokens_per_minute", "max_in_flight"):
            if getattr(self, name) is not None:
                check_range(self, name, at_least=1, at_most=_MOST)
        if len(self.created) > 64:
            raise ValueError("'created' has more than 64 characters: give a time.")


Keys = tuple[ApiKey, ...]

# Whoever comes while there are no keys.
ANYBODY: Final = ApiKey(id="anybody", tenant=DEFAULT_TENANT, api_key_sha256="0" * 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTable:
    """All keys of a file."""

    keys: Keys = ()

    def __post_init__(self) -> None:
        if len(self.keys) > MAX_KEYS:
            raise ValueError(f"'keys' has {len(self.keys)}: at most {MAX_KEYS} are allowed.")
        for name, what in (("id", "ids"), ("api_key_sha256", "keys")):
            seen: set[str] = set()
            for key in self.keys:
                if getattr(key, name) in seen:
                    raise ValueError(
                        f"'keys' has two {what} that are the same, of '{key.id}': revoke one."
                    )
                seen.add(getattr(key, name))


def read_keys(path: Path) -> KeyTable:
    """Raises ConfigError, with no part of a key in its sentence."""
    content = read_private(path, _WHAT, MAX_FILE_BYTES)
    try:
        loaded = json.loads(content, object_pairs_hook=_without_twins)
        return parse_config(KeyTable, loaded, source=f"the {_WHAT} {path}")
    except ConfigError as error:
        raise ConfigError(_SHOWN.sub(f"{PREFIX}***", error.message)) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"The {_WHAT} {path} is not valid JSON: {_in_a_line(error)}") from None


def changed_keys(path: Path, change: Callable[[Keys], Keys]) -> KeyTable:
    """Puts what `change` makes of the keys in the place of them; a missing file has none. Who calls
    it holds the file's lock. Raises ConfigError."""
    target = path.resolve()  # what a symlink leads to, not the symlink
    before = read_keys(target).keys if target.exists() else ()
    plain = {"keys": [_plain(key) for key in change(before)]}
    table = parse_config(KeyTable, plain, source=f"the {_WHAT} {path}")
    try:
        replace_private(target, json.dumps(plain, indent=1).encode() + b"\n")
    except OSError as error:
        raise ConfigError(f"The {_WHAT} {path} cannot be written: {error.strerror}.") from error
    return table


def new_key() -> str:
    """Draws a key: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: bytes) -> bytes:
    """32 bytes."""
    return hashlib.sha256(key).digest()


def without(keys: Keys, key_id: str) -> Keys:
    """Raises ConfigError where there is no such key."""
    rest = tuple(key for key in keys if key.id != key_id)
    if len(rest) == len(keys):
        known = ", ".join(key.id for key in keys[:20]) or "none"
        raise ConfigError(f"There is no key '{key_id[:80]}': known are {known}.")
    return rest


def _plain(key: ApiKey) -> dict[str, Any]:
    return {name: value for name, value in asdict(key).items() if value not in (None, "")}


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a name that is given twice would be the last one, silently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is given twice in one object")
    return found


def _in_a_line(error: Exception) -> str:
    match error:
        case json.JSONDecodeError(msg=said, lineno=line, colno=column):
            return f"{said} (line {line}, column {column})."
        case UnicodeDecodeError():
            return "it is no UTF-8 text."
        case RecursionError():
            return "it is nested too deeply."
    return f"{error}."
