"""One YAML file per process, parsed strictly into frozen dataclasses: an unknown key, a wrong
type or a missing value is a sentence that names the place. Knows no configuration of its own.
"""

import dataclasses
import difflib
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cluster.errors import ConfigError
from cluster.strict_yaml import parse_yaml

T = TypeVar("T")

MAX_SENTENCES: Final = 10  # of one refusal: the rest is told when these are mended
MAX_SHOWN: Final = 60  # characters of a wrong value or key
MASK: Final = "***"
SECRET_WORDS: Final = ("password", "secret", "token", "credential", "api_key")
NOT_SECRET_ENDINGS: Final = ("_file", "_path", "_tokens", "_token_ids")
# What is a number anywhere but in YAML, which wants a point and a sign.
_EXPONENT: Final = re.compile(r"(?P<digits>[0-9.]+)[eE](?P<sign>[-+]?)(?P<exponent>[0-9]+)")
_CREDENTIALS: Final = re.compile(r"://[^/@\s]*@")  # of a URL


class Wrong(NamedTuple):
    """One thing that is wrong in a configuration."""

    where: tuple[str | int, ...]  # the keys and indexes that lead there
    sentence: str  # begins with the place


class InvalidConfig(ConfigError):
    """A configuration with all that is wrong in it; the message tells the first ten."""

    def __init__(self, source: str, wrong: Sequence[Wrong]) -> None:
        told = " ".join(each.sentence for each in wrong[:MAX_SENTENCES])
        more = f" And {len(wrong) - MAX_SENTENCES} more." if len(wrong) > MAX_SENTENCES else ""
        super().__init__(f"In {source}: {told}{more}")
        self.wrong = tuple(wrong)


class OutOfRange(ConfigError, ValueError):
    """A number outside of what makes sense; whoever reads the file adds its place."""


def load_config(cls: type[T], path: Path) -> T:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"'{path}' cannot be read: {error.strerror}. Give a YAML file."
        ) from error
    mapping = parse_yaml(content, source=f"'{path}'")
    return parse_config(cls, {} if mapping is None else mapping, source=str(path))


def parse_config(
    cls: type[T],
    mapping: Any,
    *,
    source: str = "the configuration",
    key_of: Callable[[str], str] = str,
    passes_over: bool = False,
) -> T:
    """`mapping` is what YAML gives: text for enums and paths, lists for tuples. `key_of` says how
    a field is spelt there. `passes_over`: unknown keys are another release's, and no mistake."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"In {source}: give keys with values, not {_shown(mapping)}.")
    try:
        # From JSON, because only there does strict parsing take text for enums and paths.
        adapter = _adapter(typing.cast("Any", cls), key_of, "ignore" if passes_over else "forbid")
        [config] = adapter.validate_json(_json([mapping], source))
    except ValidationError as error:
        errors: list[Any] = [dict(found) for found in error.errors(include_url=False)]
        # A misspelt key is the cause of a missing one.
        errors.sort(key=lambda found: found["type"] != "unexpected_keyword_argument")
        wrong = [Wrong(found["loc"][1:], _sentence(cls, found, key_of)) for found in errors]
        raise InvalidConfig(source, wrong) from error
    return typing.cast("T", config)


def check_range(
    config: Any,
    *names: str,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
) -> None:
    """Raises OutOfRange for the first of the named numbers that lies outside."""
    for name in names:
        value = getattr(config, name)
        if value < at_least:
            raise OutOfRange(f"'{name}' is {value}: it must be at least {at_least:g}.")
        if value <= above:
            raise OutOfRange(f"'{name}' is {value}: it must be above {above:g}.")
        if value > at_most:
            raise OutOfRange(f"'{name}' is {value}: it must be at most {at_most:g}.")


def effective_config(config: Any) -> dict[str, Any]:
    """All values, for the log; what is secret is masked (a secret's file is not)."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: MASK if _is_secret(name) else masked(value) for name, value in values.items()}


def masked(value: Any) -> Any:
    """The same in plain values, without what is secret in it."""
    if dataclasses.is_dataclass(value):
        return effective_config(value)
    if isinstance(value, Mapping):
        return {str(k): MASK if _is_secret(str(k)) else masked(v) for k, v in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [masked(item) for item in value]
    if value is None or isinstance(value, int | float):
        return value
    return _without_credentials(str(value))


def _without_credentials(text: str) -> str:
    return _CREDENTIALS.sub(f"://{MASK}@", text)


def _is_secret(name: str) -> bool:
    is_harmless = name.endswith(NOT_SECRET_ENDINGS) or name.startswith(("num_", "max_", "min_"))
    return not is_harmless and any(word in name for word in SECRET_WORDS)


# Reading


@functools.cache  # it takes longer to make one than to read a file by it
def _adapter(
    cls: Any, key_of: Callable[[str], str], extra: Literal["forbid", "ignore"]
) -> TypeAdapter[Any]:
    # Nested dataclasses inherit these settings only from a type that is not a dataclass.
    return TypeAdapter(
        tuple[cls],
        config=ConfigDict(extra=extra, strict=True, allow_inf_nan=False, alias_generator=key_of),
    )


def _json(mapping: Any, source: str) -> str:
    def refuse(value: Any) -> None:
        raise ConfigError(f"In {source}: put quotes around {_shown(value)} to mean a text.")

    try:
        return json.dumps(mapping, default=refuse)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"In {source}: give plain values only ({error}).") from error


# Sentences


def _sentence(cls: Any, found: dict[str, Any], key_of: Callable[[str], str]) -> str:
    where = found["loc"][1:]
    place = place_of(where)
    value = MASK if any(_is_secret(str(step)) for step in where) else _shown(found["input"])
    match found["type"]:
        case "unexpected_keyword_argument":
            known = [key_of(name) for name in _fields_at(cls, where[:-1], key_of)]
            return _unknown_key(known, where)
        case "missing" | "missing_keyword_only_argument":
            return f"'{place}' is missing: it has no default."
        case "value_error":
            at = f"'{place}': " if where else ""
            told = found["msg"].removeprefix("Value error, ")
            return at + _respelt(told, _fields_at(cls, where, key_of), key_of)
        case "float_type" if number := _EXPONENT.fullmatch(str(found["input"])):
            digits, sign, exponent = number["digits"], number["sign"] or "+", number["exponent"]
            point = "" if "." in digits else ".0"
            return f"'{place}' is text to YAML: write {digits}{point}e{sign}{exponent}."
        case "string_type" if isinstance(found["input"], bool | int | float):
            return f"'{place}' is {value}: give a valid string, in quotes."
        case "dataclass_type":
            return f"'{place}' is {value}: give keys with values."
    expected = found["msg"].removeprefix("Input should be ")
    return f"'{place}' is {value}: give {expected}."


def _respelt(told: str, names: Sequence[str], key_of: Callable[[str], str]) -> str:
    """Puts the keys of a file where a section names its fields."""
    for name in names:
        told = told.replace(f"'{name}'", f"'{key_of(name)}'")
    return told


def _unknown_key(known: Sequence[str], where: Sequence[Any]) -> str:
    key, section = str(where[-1])[:MAX_SHOWN], place_of(where[:-1])
    at = f" in '{section}'" if section else ""
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    remedy = f"did you mean '{nearest[0]}'?" if nearest else _known(known)
    return f"'{key}'{at} is an unknown key: {remedy}"


def _known(keys: Sequence[str]) -> str:
    return f"known are {', '.join(keys)}." if keys else "there is none."


def place_of(where: Sequence[Any]) -> str:
    """Writes a place as sentences name it: `spec.classes[0].ttft`."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in where]
    return "".join(steps).removeprefix(".")


def _shown(value: Any) -> str:
    text = _without_credentials(json.dumps(value, default=str))
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def _fields_at(cls: Any, where: Sequence[Any], key_of: Callable[[str], str]) -> list[str]:
    """The fields of the dataclass at a place within `cls`; none where there is another value."""
    for step in where:
        cls = _type_at(_dataclass_in(cls, step), step, key_of)
    section = _dataclass_in(cls, None)
    return [each.name for each in dataclasses.fields(section)] if _is_section(section) else []


def _is_section(section: Any) -> bool:
    return dataclasses.is_dataclass(section)


def _type_at(cls: Any, step: Any, key_of: Callable[[str], str]) -> Any:
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls)
        return {key_of(name): hint for name, hint in hints.items()}.get(str(step), cls)
    arguments = [a for a in typing.get_args(cls) if a is not Ellipsis]
    return arguments[-1] if arguments else cls


def _dataclass_in(cls: Any, step: Any) -> Any:
    """Gives what a union means: its member named `step`, else its only one besides None."""
    if not isinstance(cls, types.UnionType) and typing.get_origin(cls) is not typing.Union:
        return cls
    members = [member for member in typing.get_args(cls) if member is not types.NoneType]
    named = [member for member in members if getattr(member, "__name__", None) == step]
    return (named or members)[0]
