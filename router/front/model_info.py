"""Holds what the front needs to know of the served model: names, sizes, defaults and digests. Read
from the checkpoint's JSON files; no weights, no geometry (see `engine/model_spec.py`).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cluster.chat_template import ChatTemplate
from cluster.checkpoint_config import completed, context_length, model_family, read_json
from cluster.errors import CheckpointError
from cluster.model_digest import model_digest
from cluster.tokenizer import Tokenizer
from router.front.field_rules import RULES


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """Holds what a request gets that says nothing: the checkpoint's generation config."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    max_length: int | None = None  # prompt and answer together; `max_new_tokens` goes first

    @classmethod
    def load(cls, checkpoint: Path) -> Self:
        """Reads the checkpoint's JSON; without a generation_config.json, config.json speaks in its
        place."""
        path = checkpoint / "generation_config.json"
        given = read_json(path if path.is_file() else checkpoint / "config.json")
        greedy = given.get("do_sample") is False
        return cls(
            temperature=0.0 if greedy else _as_asked(given, "temperature"),
            top_k=max(0, int(_number(given, "top_k", 0, -1, 2**31))),  # -1: all, as 0 is
            top_p=_as_asked(given, "top_p"),
            min_p=_as_asked(given, "min_p"),
            repetition_penalty=_as_asked(given, "repetition_penalty"),
            max_new_tokens=_length(given, "max_new_tokens"),
            max_length=_length(given, "max_length"),
        )

    def max_tokens(self, num_prompt: int) -> int | None:
        """Says how long an answer may be; none is left where this is not positive."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return None if self.max_length is None else self.max_length - num_prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    name: str
    context_length: int  # prompt and answer together
    vocab_size: int  # the model's, which may be more than its tokenizer's
    end_token_ids: tuple[int, ...]
    defaults: SamplingDefaults
    model_digest: str
    tokenizer_digest: str
    template_digest: str
    has_chat_template: bool
    max_token_bytes: int | None = None  # of text that one token can stand for; None: unknown

    @property
    def max_text_bytes(self) -> int | None:
        """A longer text has more tokens than the context, whatever it says."""
        return None if self.max_token_bytes is None else self.max_token_bytes * self.context_length

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        name: str,
        *,
        tokenizer: Tokenizer | None = None,
        template: ChatTemplate | None = None,
        context_length: int | None = None,
        verify_weights: bool = False,
    ) -> Self:
        """`context_length` narrows the checkpoint's own."""
        config = read_json(checkpoint / "config.json", required=True)
        tokenizer = tokenizer or Tokenizer.load(checkpoint)
        template = template or ChatTemplate.load(checkpoint)
        vocab_size = _count(checkpoint, config, "vocab_size")
        if unknown := [i for i in tokenizer.end_token_ids if i >= vocab_size]:
            raise CheckpointError(
                f"'{checkpoint}' ends answers with tokens {unknown}, but its vocab_size is "
                f"{vocab_size}: correct eos_token_id."
            )
        return cls(
            name=name,
            context_length=_context_length(checkpoint, config, context_length),
            vocab_size=vocab_size,
            end_token_ids=tokenizer.end_token_ids,
            defaults=SamplingDefaults.load(checkpoint),
            model_digest=model_digest(checkpoint, verify_weights=verify_weights),
            tokenizer_digest=tokenizer.digest,
            template_digest=template.digest,
            has_chat_template=template.is_present,
            max_token_bytes=tokenizer.max_token_bytes,
        )


def _context_length(checkpoint: Path, config: dict[str, Any], narrower: int | None) -> int:
    source = str(checkpoint / "config.json")
    own = context_length(completed(config, model_family(config, source)), source)
    if narrower is None:
        return own
    if not 0 < narrower <= own:
        raise CheckpointError(
            f"A context_length of {narrower} was asked for, but '{checkpoint}' has one of {own}: "
            "give at most that."
        )
    return narrower


def _count(checkpoint: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"'{checkpoint / 'config.json'}' has {key} {value!r}: it must be a positive number."
        )
    return value


def _length(given: dict[str, Any], key: str) -> int | None:
    return None if given.get(key) is None else int(_number(given, key, 0, 1, 2**31))


def _as_asked(given: dict[str, Any], key: str) -> float:
    """Checks a default by the bounds of the request's field of that name, whose default it
    replaces."""
    rule = RULES[f"sampling.{key}"]
    return _number(given, key, rule.default or 0.0, rule.low, rule.high)


def _number(given: dict[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = given.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
        raise CheckpointError(
            f"The generation config has {key} {value!r}: it must lie in [{low:g}, {high:g}]."
        )
    return float(value)
