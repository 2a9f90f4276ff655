"""Which tokens of a checkpoint have a role, and which were added to its vocabulary: said by up to
four files, of which the reference believes some in place of others.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from tokenizers import AddedToken

from cluster.checkpoint_json import read_json
from cluster.checkpoint_keys import NAMED_TOKENS
from cluster.errors import CheckpointError

Token: TypeAlias = str | AddedToken

_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Roles that a class of tokenizers fills where no file does.
_CLASS_TOKENS: Final[Mapping[str, Mapping[str, str]]] = {
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "Qwen2Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    "GPT2Tokenizer": dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    named: Mapping[str, Token]  # by role
    extra: tuple[Token, ...]  # with roles that only this model has
    added: Mapping[int, AddedToken]  # by the id that the files give them

    @property
    def texts(self) -> dict[str, str]:
        return {role: text_of(token) for role, token in self.named.items()}


def special_texts(checkpoint: Path, tokenizer_class: str | None) -> dict[str, str]:
    """By role: what a chat template may name. Does not read tokenizer.json."""
    named = _named(_values(checkpoint), tokenizer_class)
    return {role: text_of(token) for role, token in named.items()}


def load_special_tokens(checkpoint: Path, tokenizer_class: str | None) -> SpecialTokens:
    values = _values(checkpoint)
    given = values.get("added_tokens_decoder")
    if given is None:
        added = dict(_legacy_added(checkpoint, values))
    else:
        added = {int(token_id): _added(token) for token_id, token in given.items()}
    as_added = {token.content: token for token in added.values()}
    named = _named(values, tokenizer_class)
    return SpecialTokens(
        named={role: as_added.get(text_of(token), token) for role, token in named.items()},
        extra=tuple(_extra(values)),
        added=added,
    )


def _values(checkpoint: Path) -> dict[str, Any]:
    """'added_tokens_decoder' in tokenizer_config.json stands for all other files; without it
    special_tokens_map.json goes before tokenizer_config.json."""
    values = read_json(checkpoint / "tokenizer_config.json")
    if not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens", None)
    if "added_tokens_decoder" not in values:
        _merge(values, read_json(checkpoint / "special_tokens_map.json"))
    return values


def _named(values: Mapping[str, Any], tokenizer_class: str | None) -> dict[str, Token]:
    defaults = _CLASS_TOKENS.get(tokenizer_class or "", {})
    named: dict[str, Token] = {k: text for k, text in defaults.items() if k not in values}
    named |= {k: t for k in NAMED_TOKENS if (t := _token(values.get(k))) is not None}
    return {role: named[role] for role in NAMED_TOKENS if role in named}


def _merge(values: dict[str, Any], special_map: Mapping[str, Any]) -> None:
    for key, value in special_map.items():
        if key == "extra_special_tokens" and isinstance(value, list):
            values[key] = [*(values.get(key) or []), *value]
        elif key != "additional_special_tokens" or not values.get("extra_special_tokens"):
            name = "extra_special_tokens" if key == "additional_special_tokens" else key
            values[name] = value


def _legacy_added(checkpoint: Path, values: Mapping[str, Any]) -> Iterator[tuple[int, AddedToken]]:
    roles = {text_of(t) for key in NAMED_TOKENS if (t := _token(values.get(key))) is not None}
    roles |= set(map(text_of, _extra(values)))
    for text, token_id in read_json(checkpoint / "added_tokens.json").items():
        is_special = text in roles
        yield token_id, AddedToken(text, normalized=not is_special, special=is_special)
    for token in read_json(checkpoint / "tokenizer.json").get("added_tokens") or []:
        yield token["id"], _added(token)


def _extra(values: Mapping[str, Any]) -> Iterator[Token]:
    extra = values.get("extra_special_tokens")
    named = dict(extra) if isinstance(extra, dict) else {}
    named |= values.get("model_specific_special_tokens") or {}
    named |= {k: v for k, v in values.items() if k.endswith("_token") and k not in NAMED_TOKENS}
    listed = extra if isinstance(extra, list) else []
    for value in (*listed, *named.values()):
        if (token := _token(value)) is not None:
            yield token


def _token(value: Any) -> Token | None:
    return _added(value) if isinstance(value, dict) else value if isinstance(value, str) else None


def _added(value: Any) -> AddedToken:
    try:
        return AddedToken(value["content"], **{k: v for k, v in value.items() if k in _FLAGS})
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{value!r} in the checkpoint's tokenizer files describes no token ({error!r}): save "
            "the tokenizer again."
        ) from error


def text_of(token: Token) -> str:
    return token if isinstance(token, str) else token.content
