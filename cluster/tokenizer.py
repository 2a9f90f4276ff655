"""Text to token ids and back, by a checkpoint's tokenizer. Knows no chat, no limits.

Everything here blocks. `encode` of a long text takes up to seconds, in which it does not hold
the interpreter's lock: call it in a thread, after the text's length was checked.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import tokenizers

from cluster.checkpoint_config import read_json
from cluster.errors import CheckpointError, InvalidRequest
from cluster.model_digest import tokenizer_digest
from cluster.tokenizer_build import Built, build_tokenizer

# A text is tokenised by the thread that asks: else it waits in the library's own pool, behind
# whatever others have there.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Tokenizer:
    def __init__(
        self, tokenizer: tokenizers.Tokenizer, *, digest: str, end_token_ids: Sequence[int] = ()
    ) -> None:
        # A checkpoint may carry the settings of its training, which would cut prompts.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.digest: Final = digest
        self.end_token_ids: Final = tuple(end_token_ids)
        self.vocab_size: Final = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        self.special_token_ids: Final = frozenset(
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        # Its JSON description; empty where ids are decoded by joining tokens with spaces.
        self.max_token_bytes: Final = _max_token_bytes(tokenizer)
        self._token_bytes: dict[int, bytes] = {}
        self.decoder: Final = _described(tokenizer.decoder)

    @classmethod
    def load(cls, checkpoint: Path) -> Self:
        built = build_tokenizer(checkpoint)
        return cls(
            built.backend,
            digest=tokenizer_digest(checkpoint),
            end_token_ids=_end_token_ids(checkpoint, built),
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`; special tokens that are spelled out in it become those tokens."""
        # The batch call, because `Tokenizer.encode` holds the interpreter's lock throughout.
        try:
            [encoding] = self._tokenizer.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
        except (TypeError, UnicodeError) as error:
            raise InvalidRequest("text", "The text is not valid Unicode.") from error
        except Exception as error:  # the library raises bare Exceptions
            raise InvalidRequest("text", f"The text cannot be tokenised: {error}") from error
        return encoding.ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        if ids and not (min(ids) >= 0 and max(ids) < self.vocab_size):
            position, token_id = next(
                (n, i) for n, i in enumerate(ids) if not 0 <= i < self.vocab_size
            )
            raise InvalidRequest(
                f"token_ids[{position}]",
                f"Token id {token_id} is not in the vocabulary of {self.vocab_size}.",
            )
        return self.decode_known(ids, skip_special_tokens=skip_special_tokens)

    def decode_known(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Decodes as `decode` does, but an id without a token is nothing: a model's vocabulary is
        often padded beyond its tokenizer's."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it."""
        return self._tokenizer.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """Gives what a byte-level token stands for; nothing for an id without a token."""
        known = self._token_bytes.get(token_id)
        if known is None:
            known = self._token_bytes[token_id] = _byte_level(self.token(token_id) or "")
        return known


def _byte_level(token: str) -> bytes:
    """Each character spells a byte; a token that does not is text itself, as added ones are."""
    try:
        return bytes(map(_BYTE_OF_CHARACTER.__getitem__, token))
    except KeyError:
        return token.encode()


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 stands for itself, the other bytes for the
    characters from 256 on, in their order."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {
        chr(0x100 + position): byte for position, byte in enumerate(others)
    }


_BYTE_OF_CHARACTER: Final = _byte_of_character()


def _described(part: Any) -> dict[str, Any]:
    """A tokenizer's part as tokenizer.json has it; empty where it has none."""
    return {} if part is None else json.loads(part.__getstate__())


# Normalizers that make a text shorter by this factor at most. Composing is worst at U+0390: two
# bytes that may be spelt with seven.
_SHRINKING: Final = {"Prepend": 1, "Replace": 1, "NFC": 4}


def _max_token_bytes(tokenizer: tokenizers.Tokenizer) -> int | None:
    """The most bytes of a text that one token can stand for: with it, a text that is far over
    a context is refused without tokenising it. None where nothing such can be said: where
    unknown characters share a token, or where text may vanish."""
    if not _keeps_all_text(tokenizer):
        return None
    shrinking = 1
    normalizer = _described(tokenizer.normalizer)
    for step in normalizer.get("normalizers", [normalizer] if normalizer else []):
        drops = step["type"] == "Replace" and not (
            step["pattern"] == {"String": " "} and step["content"]
        )
        if step["type"] not in _SHRINKING or drops:
            return None
        shrinking *= _SHRINKING[step["type"]]
    return shrinking * max(map(_num_bytes, tokenizer.get_vocab(with_added_tokens=True)))


def _num_bytes(token: str) -> int:
    """Counts the bytes that a token has at most: a character of the byte-level alphabet stands for
    one."""
    return len(token.encode())


def _keeps_all_text(tokenizer: tokenizers.Tokenizer) -> bool:
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip for token in added):  # these swallow spaces
        return False
    before = json.dumps(_described(tokenizer.pre_tokenizer))
    if '"Removed"' in before:
        return False
    if '"ByteLevel"' in before:
        tokens = [*_BYTE_OF_CHARACTER]
        has_fallback = isinstance(tokenizer.model, tokenizers.models.BPE)
    else:
        tokens = [f"<0x{byte:02X}>" for byte in range(0x100)]
        has_fallback = getattr(tokenizer.model, "byte_fallback", False)
    return has_fallback and all(tokenizer.token_to_id(token) is not None for token in tokens)


def _end_token_ids(checkpoint: Path, built: Built) -> tuple[int, ...]:
    """Lists what ends an answer: as the generation config says, else the model's config; and the
    tokenizer's own end token in any case, which chat models' configs often forget."""
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        given = read_json(checkpoint / name).get("eos_token_id")
        ids = [given] if isinstance(given, int) else given if isinstance(given, list) else []
        if ids:
            break
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise CheckpointError(f"'{checkpoint}' names {ids} as eos_token_id: give token ids.")
    own = built.special.texts.get("eos_token")
    own_id = None if own is None else built.backend.token_to_id(own)
    return tuple(dict.fromkeys([*ids, *([] if own_id is None else [own_id])]))
