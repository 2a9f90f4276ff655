"""Picks where a request's text is worked on, by its size: at once what is tiny; beside the event
loop, on threads, what is small and all token ids; what is large in a process that a call given up
ends. Neither waits for the other, and in each lane small goes before large.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

from cluster.detokenizer import whole_text
from router.front.prompt import ChatPrompt, Prompt, TokenPrompt
from router.front.text import Text
from router.front.text_child import Settings, TextKind
from router.front.text_codec import (
    ids_to_bytes,
    prompt_to_bytes,
    text_to_bytes,
    tokenized_from_bytes,
    tokenized_to_bytes,
)
from router.front.text_process import TextProcess
from router.front.text_threads import TextThreads
from router.front.validation import GenerationInput
from router.relay import RoutedRequest

MAX_SMALL: Final = 32 << 10  # bytes of text: some 10 ms of a thread
_MAX_TINY: Final = 256  # bytes of text, or 1,024 ids: some 100 us
_ID_WEIGHT: Final = 2  # decoding holds the interpreter's lock: 2 ms at the most


class TextLanes:
    """Does what is to be done with text, each where its size belongs."""

    def __init__(self, text: Text, *, num_threads: int = 2, max_waiting: int = 2048) -> None:
        self._text = text
        self.threads = TextThreads(
            num_threads=num_threads, max_waiting=max_waiting, largest_bytes=MAX_SMALL
        )
        self.process = TextProcess(
            _settings(text), max_waiting=max_waiting, largest_bytes=text.limits.max_prompt_bytes
        )

    async def routed(self, given: GenerationInput, arrived_at: float) -> RoutedRequest:
        """A request with its tokens, checked and hashed."""
        prompt = given.prompt
        if is_tiny(given):
            return self._route(given, arrived_at)
        if is_small(prompt):
            return await self.threads.run(prompt.weight, self._route, given, arrived_at)
        tokenized = await self._largely(prompt)
        return await self.threads.run(
            MAX_SMALL, self._route_tokenized, given, tokenized, arrived_at
        )

    async def tokenized(self, prompt: Prompt) -> bytes:
        """A `TokenizeResponse`."""
        if is_small(prompt):
            return await self.threads.run(prompt.weight, self._tokenize, prompt)
        return await self._largely(prompt)

    async def detokenized(self, ids: Sequence[int], *, skip_special_tokens: bool) -> bytes:
        """A `DetokenizeResponse`."""
        weight = _ID_WEIGHT * len(ids)
        if weight <= MAX_SMALL:
            return await self.threads.run(weight, self._detokenize, ids, skip_special_tokens)
        encode = partial(ids_to_bytes, ids, skip_special_tokens=skip_special_tokens)
        return await self.process.call(TextKind.DETOKENIZE, weight, encode)

    async def close(self) -> None:
        self.threads.close()
        await self.process.close()

    async def _largely(self, prompt: Prompt) -> bytes:
        assert not isinstance(prompt, TokenPrompt)
        encode = partial(prompt_to_bytes, prompt)
        return await self.process.call(TextKind.TOKENIZE, prompt.weight, encode)

    # In a thread, but what is tiny

    def _route(self, given: GenerationInput, arrived_at: float) -> RoutedRequest:
        return self._text.routed(given, self._text.tokenized(given.prompt), arrived_at)

    def _route_tokenized(
        self, given: GenerationInput, tokenized: bytes, arrived_at: float
    ) -> RoutedRequest:
        return self._text.routed(given, tokenized_from_bytes(tokenized), arrived_at)

    def _tokenize(self, prompt: Prompt) -> bytes:
        return tokenized_to_bytes(self._text.tokenized(prompt))

    def _detokenize(self, ids: Sequence[int], skip_special_tokens: bool) -> bytes:
        text = whole_text(self._text.tokenizer, list(ids), skip_special_tokens=skip_special_tokens)
        return text_to_bytes(text)


def is_tiny(given: GenerationInput) -> bool:
    """Tells whether it takes less than to have a thread do it, and be told."""
    prompt = given.prompt
    return prompt.weight <= _MAX_TINY and not given.bad_words and not isinstance(prompt, ChatPrompt)


def is_small(prompt: Prompt) -> bool:
    """Tells whether it belongs on a thread. Ids always do: they are only checked and hashed."""
    return isinstance(prompt, TokenPrompt) or prompt.weight <= MAX_SMALL


def _settings(text: Text) -> Settings:
    return Settings(
        checkpoint=str(text.checkpoint),
        tokenizer_digest=text.tokenizer.digest,
        template_digest=text.template.digest,
        max_text_bytes=text.info.max_text_bytes,
        max_rendered_chars=text.limits.max_prompt_bytes,
    )
