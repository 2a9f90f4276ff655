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
    max_message_bytes: int = 8 << 20  # of one message of gRPC, or body of HTTP
    """With `max_prompt_bytes`, which must fit in."""
    max_prompt_bytes: int = 4 << 20  # of text or of all chat messages
    """Raise it for contexts of a million tokens; lower it where memory is short."""
    max_messages: int = 2048  # messages of a chat
    """Raise it for agents whose chats are longer."""
    max_prompt_tokens: int | None = None  # null: what the context has room for
    """Where long prompts are to be refused that the model could take."""
    max_output_tokens: int | None = None  # null: the same
    """Where answers are to end sooner."""
    max_n: int = 16  # answers to one prompt
    """Lower it where one request must not fill a decode worker."""
    max_stop_strings: int = 16  # strings of one request
    """Where a client's request is refused for it."""
    max_stop_string_bytes: int = 256  # of each
    """Where a client's request is refused for it."""
    max_stop_token_ids: int = 256  # ids of one request
    """Where a client's request is refused for it."""
    max_bad_words: int = 128  # words of one request
    """Raise it for lists of words; each costs time at each token."""
    max_bad_word_bytes: int = 128  # of each
    """Where a client's request is refused for it."""
    max_logprobs: int = 20  # alternatives at each token
    """Raise it to study a model; they are larger than the text."""
    max_logit_bias: int = 1024  # tokens with a bias
    """Where a client's request is refused for it."""
    max_request_id_chars: int = 128  # as a client may choose one
    """Where callers have longer ids of their own."""
    max_cache_scope_chars: int = 128  # as a client may choose one
    """Where callers have longer names for them."""
    max_class_chars: int = 63  # as a policy may name one
    """Never: policies have no longer names."""
    max_session_key_chars: int = 256  # as a client may choose one
    """Where callers have longer keys for them."""
    default_deadline_s: float = 300.0  # of a request that brings none
    """Raise it where answers take longer and clients set no deadline."""
    max_deadline_s: float = 3600.0  # a longer one is cut to this
    """Raise it for batches that may wait for hours."""

    def __post_init__(self) -> None:
        given = [name for name in _OPTIONAL if getattr(self, name) is not None]
        check_range(self, *_COUNTS, *given, at_least=1)
        check_range(self, *_MAY_BE_ZERO, at_least=0)
        check_range(self, "default_deadline_s", "max_deadline_s", above=0)
