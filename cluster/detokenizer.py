"""An answer's tokens to its text, token by token: never half a character, and nothing that may
be part of a stop string. One `Detokenizer` a choice; knows no request and no stop tokens.

All texts together are the `whole_text` of all ids, at a cost that is linear in them, and
however the ids were grouped.
"""

import codecs
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from cluster.stop_strings import StopMatcher, StopStrings
from cluster.tokenizer import Tokenizer
from cluster.types import GenerationParams

REPLACEMENT = "\ufffd"


class TextDelta(NamedTuple):
    text: str
    num_tokens: int  # of those pushed, up to and with the one that completed a stop string
    stop_string: str | None = None


class Detokenizer:
    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        context: Sequence[int] = (),
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = False,
        stop_strings: StopStrings | Sequence[str] = (),
        include_stop_string: bool = False,
        min_tokens: int = 0,
    ) -> None:
        """`context` are the last ids before the answer, where the answer continues them: a
        leading space then is not the tokenizer's own. No stop string matches before
        `min_tokens` tokens have gone by; a caller with several choices builds `StopStrings`
        once."""
        if not isinstance(stop_strings, StopStrings):
            stop_strings = StopStrings(stop_strings)
        if spaces_between_special_tokens and not skip_special_tokens:
            self._text: _TokenText = _SpacedText(tokenizer, context)
        else:
            self._text = _token_text(tokenizer, context, skip_special_tokens)
        self._matcher = StopMatcher(stop_strings, include=include_stop_string)
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._is_stopped = False

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        pieces = []
        for num_tokens, token_id in enumerate(token_ids, 1):
            self._num_tokens += 1
            text = self._text.push(token_id)
            found = self._matcher.push(text, may_match=self._num_tokens > self._min_tokens)
            pieces.append(found.text)
            if found.stop_string is not None:
                self._is_stopped = True
                return TextDelta("".join(pieces), num_tokens, found.stop_string)
        return TextDelta("".join(pieces), len(token_ids))

    def replay(self, token_ids: Sequence[int]) -> TextDelta:
        """Tokens that an earlier attempt has sent: their text was sent with them, they only
        count. What that attempt held back is held back here."""
        return self.push(token_ids)._replace(text="")

    def finish(self) -> str:
        """The rest, where the answer ends other than by a stop string. Call it once."""
        if self._is_stopped:
            return ""
        last = self._matcher.push(self._text.finish(), may_match=False)
        return last.text + self._matcher.finish()


def new_detokenizer(
    tokenizer: Tokenizer, params: GenerationParams, *, context: Sequence[int]
) -> Callable[[], Detokenizer]:
    """Makes one for each choice of an answer, as the request asked."""
    stop_strings = StopStrings(params.stop_strings)
    return lambda: Detokenizer(
        tokenizer,
        context=context,
        skip_special_tokens=params.skip_special_tokens,
        spaces_between_special_tokens=params.spaces_between_special_tokens,
        stop_strings=stop_strings,
        include_stop_string=params.include_stop_string,
        min_tokens=params.sampling.min_tokens,
    )


def whole_text(tokenizer: Tokenizer, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
    """Gives the text that a stream of these tokens shows. Where bytes are broken,
    `Tokenizer.decode` replaces the good ones beside them, too, which a stream has shown by then.

    *Raises* InvalidRequest for an id out of the vocabulary.
    """
    text = tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
    if REPLACEMENT not in text:
        return text
    stream = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    return stream.push(token_ids).text + stream.finish()


class _TokenText(Protocol):
    """The text of one token after another, in whole characters."""

    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


def _token_text(tokenizer: Tokenizer, context: Sequence[int], skip_special: bool) -> _TokenText:
    if tokenizer.decoder.get("type") == "ByteLevel":
        return _ByteLevelText(tokenizer, skip_special)
    return _WindowText(tokenizer, context, skip_special)


class _SpacedText:
    """Shows every special token with a space between it and what stands beside it, as Hugging
    Face's slow tokenizers join: what lies between two of them is a text of its own."""

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._run = _token_text(tokenizer, context, False)
        self._has_text = False  # something was shown
        self._begins = True  # what is shown next begins a text, or is a special token

    def push(self, token_id: int) -> str:
        if token_id not in self._tokenizer.special_token_ids:
            return self._joined(self._run.push(token_id))
        before = self.finish()
        token = self._new_text()
        self._begins = True
        itself = self._joined(token.push(token_id) + token.finish())
        self._run = self._new_text()
        self._begins = True
        return before + itself

    def finish(self) -> str:
        return self._joined(self._run.finish())

    def _joined(self, text: str) -> str:
        if not text:
            return ""
        space = " " if self._begins and self._has_text else ""
        self._begins, self._has_text = False, True
        return space + text

    def _new_text(self) -> _TokenText:
        return _token_text(self._tokenizer, (), False)


class _ByteLevelText:
    """Tokens that are plain bytes: each has its own, whatever stands before it."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowText:
    """Any other tokenizer: decodes a window of the last tokens and cuts off what it knows.

    The window begins at a token whose text was complete, so that a rule for the beginning of
    a text, such as Metaspace's dropped space, falls on text that was sent long ago.
    """

    MAX_TOKENS = 24  # of a window whose text is incomplete; a character has 4 at most

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skip_special else frozenset()
        self._ids = [i for i in context[-self.MAX_TOKENS // 2 :] if i not in self._skipped]
        self._known = self._decode(self._ids)  # the text of the window's first tokens …
        self._num_known = len(self._ids)  # … of so many

    def push(self, token_id: int) -> str:
        if token_id in self._skipped or self._tokenizer.token(token_id) is None:
            return ""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        is_complete = not text.endswith(REPLACEMENT)
        is_full = len(self._ids) - self._num_known >= self.MAX_TOKENS
        new = self._advance(text) if is_complete or is_full else ""
        if is_full and not new:  # tokens without any text
            del self._ids[self._num_known :]
        return new

    def finish(self) -> str:
        return self._advance(self._decode(self._ids))

    def _advance(self, text: str) -> str:
        new = self._new(text)
        if new:
            self._ids = self._ids[self._num_known :]
            self._num_known = len(self._ids)
            self._known = self._decode(self._ids)
        return new

    def _new(self, text: str) -> str:
        if text.startswith(self._known):
            return text[len(self._known) :]
        # Bytes after the known ones spoilt those: they are no characters, on their own.
        return self._decode(self._ids[self._num_known :])

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode_known(ids, skip_special_tokens=False)
