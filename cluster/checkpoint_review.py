"""Every key of a checkpoint's JSON files, judged by `checkpoint_keys`: refused with a sentence,
or listed for whoever wants to know what was not believed. Reads no weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cluster import checkpoint_keys as keys
from cluster.checkpoint_config import model_family, read_json, rope_kind, rope_of
from cluster.checkpoint_keys import KeyFate, Table
from cluster.errors import CheckpointError

_MAX_SHOWN_CHARS = 60
_REMEDY = "Use the original checkpoint, or take it out where the model was made without it."


class Note(NamedTuple):
    """Keys of one file that change nothing, for one reason."""

    file: str
    why: str  # what they are for; empty: nobody here knows them
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReview:
    ignored: tuple[Note, ...] = ()  # by the reference, too
    unknown: tuple[Note, ...] = ()  # in no table, and not meant for the model by their names


class _Verdict(NamedTuple):
    file: str
    key: str
    why: str
    is_known: bool


def review(checkpoint: Path) -> CheckpointReview:
    """*Raises* CheckpointError for a key or file that would change answers and is not honoured."""
    verdicts = [*_config(checkpoint), *_others(checkpoint), *_files(checkpoint)]
    return CheckpointReview(
        ignored=_notes(verdict for verdict in verdicts if verdict.is_known),
        unknown=_notes(verdict for verdict in verdicts if not verdict.is_known),
    )


def _notes(verdicts: Iterator[_Verdict]) -> tuple[Note, ...]:
    groups: dict[tuple[str, str], list[str]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.file, verdict.why), []).append(verdict.key)
    return tuple(Note(file, why, tuple(sorted(names))) for (file, why), names in groups.items())


def _config(checkpoint: Path) -> Iterator[_Verdict]:
    path = checkpoint / "config.json"
    config = read_json(path, required=True)
    family = model_family(config, str(path))
    has_generation = (checkpoint / "generation_config.json").is_file()
    table = keys.config_table(family, has_generation_config=has_generation)
    for verdict in _judged(path, path.name, config, table):
        if not verdict.is_known and keys.may_mean_the_model(verdict.key, config[verdict.key]):
            raise _refusal(path, verdict.key, config[verdict.key], "nobody here knows it")
        yield verdict
    yield from _rope(path, rope_of(config))


def _rope(path: Path, rope: Any) -> Iterator[_Verdict]:
    if not isinstance(rope, dict) or rope_kind(rope) not in keys.ROPE_KINDS:
        return  # whoever computes with it says so
    file = f"{path.name}, rotary parameters"
    for verdict in _judged(path, file, rope, keys.rope_table(rope_kind(rope))):
        if not verdict.is_known and rope[verdict.key] not in keys.EMPTY:
            why = f"it means nothing for {rope_kind(rope)!r}"
            raise _refusal(path, verdict.key, rope[verdict.key], why)
        yield verdict


def _others(checkpoint: Path) -> Iterator[_Verdict]:
    tables = {
        "generation_config.json": keys.GENERATION,
        "tokenizer_config.json": keys.TOKENIZER,
        "special_tokens_map.json": keys.SPECIAL_TOKENS_MAP,
    }
    for name, table in tables.items():
        path = checkpoint / name
        for verdict in _judged(path, name, read_json(path), table):
            # Tokens with a role that only this model has.
            if verdict.is_known or not verdict.key.endswith("_token"):
                yield verdict


def _files(checkpoint: Path) -> Iterator[_Verdict]:
    here = {path.name: path.name for path in checkpoint.iterdir()}
    if {"model.safetensors", "model.safetensors.index.json"} <= here.keys():
        del here["model.safetensors.index.json"]
        why = "weights that are not in model.safetensors, which goes first"
        yield _Verdict("files", "model.safetensors.index.json", why, is_known=True)
    for verdict in _judged(checkpoint, "files", here, keys.FILES):
        if verdict.is_known:
            yield verdict


def _judged(path: Path, file: str, values: Mapping[str, Any], table: Table) -> Iterator[_Verdict]:
    """Lists what is neither honoured nor refused."""
    for key, value in values.items():
        rule = table.get(key)
        if rule is None:
            yield _Verdict(file, key, "", is_known=False)
        elif rule.fate is KeyFate.IGNORED:
            yield _Verdict(file, key, rule.why, is_known=True)
        elif rule.fate is KeyFate.REFUSED and not _is_in(value, rule.harmless):
            raise _refusal(path, key, value, rule.why)


def _is_in(value: Any, harmless: tuple[Any, ...]) -> bool:
    """A number is not a truth value: `False` is no 0 here."""
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in harmless
    )


def _refusal(path: Path, key: str, value: Any, why: str) -> CheckpointError:
    shown = "" if value == key else f" is {_shown(value)}"
    return CheckpointError(f"'{key}' in {path}{shown}: {why}. {_REMEDY}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"
