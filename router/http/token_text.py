"""Single tokens as OpenAI's log-probabilities show them: a text, and the bytes it stands for."""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from cluster.detokenizer import Detokenizer
from cluster.tokenizer import Tokenizer
from penstock.v1 import inference_pb2 as pb
from router.http.replies import ChatTokenLogprob, ChatTopLogprob, TextLogprobs

_MAX_KNOWN: Final = 1 << 14  # tokens
_LEAST: Final = -9999.0  # OpenAI's for what could not be drawn: JSON has no infinity
_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenText(NamedTuple):
    text: str
    bytes: list[int]


TokenTexts = Callable[[int], TokenText]


def token_texts(tokenizer: Tokenizer) -> TokenTexts:
    """Returns what says the text of a token id. Each is worked out once, and many are kept."""
    is_byte_level = tokenizer.decoder.get("type") == "ByteLevel"

    def found(token_id: int) -> TokenText:
        # After itself: a leading space then is its own.
        alone = Detokenizer(tokenizer, context=(token_id,), skip_special_tokens=False)
        text = alone.push([token_id]).text + alone.finish()
        if is_byte_level:
            return TokenText(text, list(tokenizer.token_bytes(token_id)))
        byte = _BYTE.fullmatch(tokenizer.token(token_id) or "")
        return TokenText(text, [int(byte[1], 16)] if byte else list(text.encode()))

    return lru_cache(_MAX_KNOWN)(found)


def chat_logprobs(tokens: Iterable[pb.TokenLogprob], texts: TokenTexts) -> list[ChatTokenLogprob]:
    return [
        ChatTokenLogprob(
            *_shown(token, texts),
            top_logprobs=[ChatTopLogprob(*_shown(each, texts)) for each in token.top],
        )
        for token in tokens
    ]


def _shown(
    token: pb.TokenLogprob | pb.TopLogprob, texts: TokenTexts
) -> tuple[str, float, list[int]]:
    text = texts(token.token_id)
    return text.text, max(token.logprob, _LEAST), text.bytes


def no_text_logprobs() -> TextLogprobs:
    return TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])


def add_text_logprobs(
    shown: TextLogprobs,
    tokens: Iterable[pb.TokenLogprob | pb.PromptLogprob],
    texts: TokenTexts,
    offset: int,
) -> int:
    """Appends tokens of which the first begins at this offset; returns where the next one does."""
    for token in tokens:
        text = texts(token.token_id).text
        has_one = token.HasField("logprob") if isinstance(token, pb.PromptLogprob) else True
        value = max(token.logprob, _LEAST)
        shown.tokens.append(text)
        shown.text_offset.append(offset)
        shown.token_logprobs.append(value if has_one else None)
        top = {texts(each.token_id).text: max(each.logprob, _LEAST) for each in token.top}
        shown.top_logprobs.append({**top, text: value} if has_one else None)
        offset += len(text)
    return offset
