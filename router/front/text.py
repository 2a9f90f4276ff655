"""The served model as the router knows it: tokenizer, template, bounds and the hash key.

Knows no worker, and not where its work is done: all of it blocks.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.block_hash import grain_hashes, hash_key
from cluster.chat_template import ChatTemplate
from cluster.checkpoint_review import CheckpointReview, review
from cluster.codec import decode_request_to_bytes
from cluster.limits import Limits
from cluster.tokenizer import Tokenizer
from router.config import RouterConfig
from router.fleet import Identity
from router.flight import Ask
from router.front.model_info import ModelInfo
from router.front.prompt import Prompt, prompt_ids
from router.front.validation import GenerationInput, resolve
from router.relay import RoutedRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    checkpoint: Path
    tokenizer: Tokenizer
    template: ChatTemplate
    info: ModelInfo
    limits: Limits
    hash_secret: bytes
    hash_grain: int
    review: CheckpointReview  # what of the checkpoint's files is not believed

    @classmethod
    def load(cls, config: RouterConfig, hash_secret: bytes) -> "Text":
        reviewed = review(config.checkpoint)
        for note in reviewed.unknown:
            logger.warning("unknown keys, ignored: %s in %s", ", ".join(note.keys), note.file)
        tokenizer = Tokenizer.load(config.checkpoint)
        template = ChatTemplate.load(config.checkpoint, max_chars=config.limits.max_prompt_bytes)
        info = ModelInfo.load(
            config.checkpoint,
            config.model,
            tokenizer=tokenizer,
            template=template,
            context_length=config.context_length,
            verify_weights=config.verify_weights,
        )
        return cls(
            checkpoint=config.checkpoint,
            tokenizer=tokenizer,
            template=template,
            info=info,
            limits=config.limits,
            hash_secret=hash_secret,
            hash_grain=config.hash_grain,
            review=reviewed,
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

    def tokenized(self, prompt: Prompt) -> list[int]:
        return prompt_ids(prompt, self.tokenizer, self.template)

    def routed(
        self, given: GenerationInput, prompt_ids: Sequence[int], arrived_at: float
    ) -> RoutedRequest:
        """Checks what needs tokens, and hashes."""
        key = hash_key(
            self.hash_secret,
            tenant=given.tenant,
            cache_scope=given.cache_scope,
            model_digest=self.info.model_digest,
        )
        request = resolve(given, prompt_ids, self.tokenizer, self.info, self.limits, hash_key=key)
        # Prompt logprobs need every prompt token computed.
        reuses_cache = request.params.sampling.num_prompt_logprobs is None
        ask = Ask(
            request_id=request.request_id,
            # A tuple: the collector walks it once, and a list every time.
            hashes=tuple(grain_hashes(key, request.prompt_ids, self.hash_grain))
            if reuses_cache
            else (),
            num_prompt_tokens=len(request.prompt_ids),
            max_tokens=request.params.max_tokens,
            arrived_at=arrived_at,
            num_choices=request.params.num_choices,
            tenant=given.tenant,
            hints=given.hints,
        )
        message = decode_request_to_bytes(
            request,
            model=self.info.name,
            tenant=given.tenant,
            cache_scope=given.cache_scope,
            resume_secret=given.resume_secret,
        )
        return RoutedRequest(ask, message)
