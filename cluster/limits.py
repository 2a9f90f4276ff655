"""What one request may ask for at most. The defaults are the product's; an operator's YAML may
narrow or widen them, and `GetModel` tells them to clients."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    max_message_bytes: int = 8 << 20
    max_prompt_bytes: int = 4 << 20  # of text or of all chat messages
    max_messages: int = 2048
    max_prompt_tokens: int | None = None  # None: what the context has room for
    max_output_tokens: int | None = None
    max_n: int = 16
    max_stop_strings: int = 16
    max_stop_string_bytes: int = 256
    max_stop_token_ids: int = 256
    max_logprobs: int = 20
    max_logit_bias: int = 1024
    max_request_id_chars: int = 128
    max_cache_scope_chars: int = 128
    max_class_chars: int = 63  # as a policy may name one
    max_session_key_chars: int = 256
    default_deadline_s: float = 300.0
    max_deadline_s: float = 3600.0
