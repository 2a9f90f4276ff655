"""What one request may ask for at most. The defaults are the product's; an operator's YAML may
narrow or widen them, and `GetModel` tells them to clients."""

from dataclasses import dataclass

from cluster.config import check_range

_COUNTS = ("max_message_bytes", "max_prompt_bytes", "max_messages", "max_n")
_OPTIONAL = ("max_prompt_tokens", "max_output_tokens")
_MAY_BE_ZERO = (
    "max_stop_strings",
    "max_stop_string_bytes",
    "max_stop_token_ids",
    "max_bad_words",
    "max_bad_word_bytes",
    "max_logprobs",
    "max_logit_bias",
    "max_request_id_chars",
    "max_cache_scope_chars",
    "max_class_chars",
    "max_session_key_chars",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    max_message_bytes: int = 8 << 20  # of one gRPC message
    max_prompt_bytes: int = 4 << 20  # of text or of all chat messages
    max_messages: int = 2048  # of a chat
    max_prompt_tokens: int | None = None  # null: what the context has room for
    max_output_tokens: int | None = None  # null: the same
    max_n: int = 16  # answers to one prompt
    max_stop_strings: int = 16  # of one request
    max_stop_string_bytes: int = 256  # of each
    max_stop_token_ids: int = 256  # of one request
    max_bad_words: int = 128  # of one request
    max_bad_word_bytes: int = 128  # of each
    max_logprobs: int = 20  # alternatives at each token
    max_logit_bias: int = 1024  # tokens with a bias
    max_request_id_chars: int = 128  # as a client may choose one
    max_cache_scope_chars: int = 128  # as a client may choose one
    max_class_chars: int = 63  # as a policy may name one
    max_session_key_chars: int = 256  # as a client may choose one
    default_deadline_s: float = 300.0  # of a request that brings none
    max_deadline_s: float = 3600.0  # a longer one is cut to this

    def __post_init__(self) -> None:
        given = [name for name in _OPTIONAL if getattr(self, name) is not None]
        check_range(self, *_COUNTS, *given, at_least=1)
        check_range(self, *_MAY_BE_ZERO, at_least=0)
        check_range(self, "default_deadline_s", "max_deadline_s", above=0)
