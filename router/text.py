"""The served model as the router knows it: tokenizer, template, bounds and the hash key; and
the threads beside the event loop in which it is used, because all of that blocks.

Knows no worker.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from cluster.block_hash import grain_hashes, hash_key
from cluster.chat_template import ChatTemplate
from cluster.errors import Overloaded
from cluster.limits import Limits
from cluster.model_info import ModelInfo
from cluster.tokenizer import Tokenizer
from cluster.types import ComputeRequest
from cluster.validation import GenerationInput, Prompt, prompt_ids, resolve
from router.config import RouterConfig
from router.fleet import Identity
from router.placer import DEFAULT_TENANT
from router.relay import RoutedRequest

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    tokenizer: Tokenizer
    template: ChatTemplate
    info: ModelInfo
    limits: Limits
    hash_secret: bytes
    hash_grain: int

    @classmethod
    def load(cls, config: RouterConfig, hash_secret: bytes) -> "Text":
        tokenizer = Tokenizer.load(config.checkpoint)
        template = ChatTemplate.load(config.checkpoint)
        info = ModelInfo.load(
            config.checkpoint,
            config.model,
            tokenizer=tokenizer,
            template=template,
            context_length=config.context_length,
            verify_weights=config.verify_weights,
        )
        return cls(
            tokenizer=tokenizer,
            template=template,
            info=info,
            limits=config.limits,
            hash_secret=hash_secret,
            hash_grain=config.hash_grain,
        )

    @property
    def identity(self) -> Identity:
        return Identity(
            model=self.info.name,
            model_digest=self.info.model_digest,
            tokenizer_digest=self.info.tokenizer_digest,
            template_digest=self.info.template_digest,
            hash_grain=self.hash_grain,
        )

    def routed(self, given: GenerationInput, received_at: float) -> RoutedRequest:
        """Tokenises, checks what needs tokens, and hashes. Blocks."""
        ids = prompt_ids(given.prompt, self.tokenizer, self.template)
        resolved = resolve(given, ids, self.info, self.limits)
        key = hash_key(
            self.hash_secret,
            tenant=DEFAULT_TENANT,
            cache_scope=resolved.cache_scope,
            model_digest=self.info.model_digest,
        )
        compute = ComputeRequest(
            request_id=resolved.request_id,
            prompt_ids=resolved.prompt_ids,
            params=resolved.params,
            hash_key=key,
        )
        return RoutedRequest(
            compute=compute,
            hashes=tuple(grain_hashes(key, resolved.prompt_ids, self.hash_grain)),
            model=self.info.name,
            cache_scope=resolved.cache_scope,
            received_at=received_at,
            # Prompt logprobs need every prompt token computed.
            bypasses_cache=resolved.params.sampling.num_prompt_logprobs is not None,
            hints=given.hints,
        )

    def tokenized(self, prompt: Prompt) -> list[int]:
        """Blocks."""
        return prompt_ids(prompt, self.tokenizer, self.template)


class TextThreads:
    """A few threads and a bounded queue before them."""

    def __init__(self, *, num_threads: int = 2, max_waiting: int = 256) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="text")
        self._max_waiting = max_waiting
        self._places = threading.BoundedSemaphore(num_threads + max_waiting)

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs blocking work in a thread. What has begun ends there, even if nobody waits."""
        if not self._places.acquire(blocking=False):
            raise Overloaded(
                f"{self._max_waiting} prompts wait to be tokenised, and no more are taken on."
            )
        future = self._executor.submit(work, *args, **kwargs)
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
