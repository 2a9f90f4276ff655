"""The fields of a request as keywords. Made by `scripts/proto`, not by hand."""

from collections.abc import Mapping, Sequence
from typing import TypedDict


class RequestFields(TypedDict, total=False):
    """What `generate` takes beside the prompt and how it waits. Left out: the server's default."""

    request_id: str  # chosen by the client, or empty: the router makes one
    model: str  # empty: the only model served
    temperature: float  # from 0 to 10 (0 is greedy); default: 1.0
    # as many of the likeliest are kept; from 0 to 2147483647 (0 for all tokens); default: 0
    top_k: int
    # The fewest of the likeliest tokens that together have this share are kept.
    top_p: float  # from 1e-06 to 1 (1 keeps all tokens); default: 1.0
    # Tokens that are less likely than this share of the likeliest are not kept.
    min_p: float  # from 0 to 1 (0 keeps all tokens); default: 0.0
    # By how often a token is in the answer already.
    frequency_penalty: float  # from -2 to 2 (0 is none); default: 0.0
    # For being in the answer already.
    presence_penalty: float  # from -2 to 2 (0 is none); default: 0.0
    # A factor, for being in the prompt or the answer already.
    repetition_penalty: float  # from 0.01 to 10 (1 is none); default: 1.0
    seed: int  # default: drawn by the router and reported
    logit_bias: Mapping[int, float]  # token id -> added to its logit; from -100 to 100
    allowed_token_ids: Sequence[int]  # empty: all
    bad_token_ids: Sequence[int]
    # Not in the answer, neither as they are written nor after a space; a word that the model spells
    # with other tokens than its tokenizer would is not seen.
    bad_words: str | Sequence[str]
    max_tokens: int  # default: what the context has room for, up to the server's limit
    min_tokens: int  # no stop token and no stop string before these; default: 0
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    include_stop_string: bool  # default: False
    ignore_eos: bool  # default: False
    skip_special_tokens: bool  # default: True
    # Special tokens that are shown stand apart from text and from each other.
    spaces_between_special_tokens: bool  # default: False
    # The sampled token's and this many alternatives'.
    logprobs: int
    # Of the prompt's tokens; bypasses prefix reuse.
    prompt_logprobs: int
    n: int  # answers to one prompt; default: 1
    priority: int  # higher first within a worker's queue; default: 0
    # One of the policy's classes, whose targets and weight count for it; empty: its default.
    service_class: str
    session_key: str  # requests of one session stay with a worker where that is cheap
    cache_scope: str  # narrows prefix reuse to requests of the same scope
    # To the first token, and from token to token, in seconds: they narrow the targets of the class.
    ttft_budget: float
    itl_budget: float
