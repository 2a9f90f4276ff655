"""Reads which tokens of a checkpoint have a role, and which were added to its vocabulary: said by
up to four files, of which the reference believes some in place of others.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from tokenizers import AddedToken

from cluster.checkpoint_config import read_json
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
    extra: tuple[Token, ...]  # special without a role
    added: Mapping[int, AddedToken]  # by the id that the files give them

    @property
    def texts(self) -> dict[str, str]:
        return {role: text_of(token) for role, token in self.named.items()}


def special_texts(checkpoint: Path, tokenizer_class: str | None) -> dict[str, str]:
    """Reads, by role, what a chat template may name. Does not read tokenizer.json."""
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
    values = _settled(read_json(checkpoint / "tokenizer_config.json"))
    if "added_tokens_decoder" in values:
        return values
    special_map = read_json(checkpoint / "special_tokens_map.json")
    if isinstance(more := special_map.get("extra_special_tokens"), list):
        special_map["extra_special_tokens"] = [*(values["extra_special_tokens"] or ()), *more]
    return _settled({**values, **special_map})


def _settled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Gives one name to what had several: extra tokens that have roles are the model's own, and
    where no others are called extra, 'additional' ones are meant."""
    settled = dict(values)
    if isinstance(extra := settled.get("extra_special_tokens"), dict):
        own = settled.get("model_specific_special_tokens") or {}
        settled |= {"model_specific_special_tokens": own | extra, "extra_special_tokens": None}
    additional = settled.pop("additional_special_tokens", None)
    settled["extra_special_tokens"] = settled.get("extra_special_tokens") or additional
    return settled


def _named(values: Mapping[str, Any], tokenizer_class: str | None) -> dict[str, Token]:
    """The common roles, then those that only this model has."""
    defaults = _CLASS_TOKENS.get(tokenizer_class or "", {})
    common = {k: values.get(k, defaults.get(k)) for k in NAMED_TOKENS}
    own = {k: v for k, v in values.items() if k.endswith("_token") and k not in common}
    own |= values.get("model_specific_special_tokens") or {}
    roles = {**common, **own}
    return {role: t for role, value in roles.items() if (t := _token(value)) is not None}


def _legacy_added(checkpoint: Path, values: Mapping[str, Any]) -> Iterator[tuple[int, AddedToken]]:
    roles = {text_of(t) for key in NAMED_TOKENS if (t := _token(values.get(key))) is not None}
    roles |= set(map(text_of, _extra(values)))
    for text, token_id in read_json(checkpoint / "added_tokens.json").items():
        is_special = text in roles
        yield token_id, AddedToken(text, normalized=not is_special, special=is_special)
    for token in read_json(checkpoint / "tokenizer.json").get("added_tokens") or []:
        yield token["id"], _added(token)


def _extra(values: Mapping[str, Any]) -> Iterator[Token]:
    for value in values["extra_special_tokens"] or ():
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
