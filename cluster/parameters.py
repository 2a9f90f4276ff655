"""The parameters of a request as workers see them. Made by `scripts/proto`, not by hand."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Says how one token is drawn, keyed by (seed, choice, position): it can be drawn anywhere."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 is all
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()  # empty is all
    bad_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0  # stop tokens are masked before these
    stop_token_ids: tuple[int, ...] = ()  # the end tokens are among them unless ignore_eos
    num_logprobs: int | None = None  # absent: none; k: the sampled token and k alternatives
    num_prompt_logprobs: int | None = None
    bad_word_ids: tuple[tuple[int, ...], ...] = ()  # runs of tokens that the answer must not hold


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """A request with every default resolved."""

    sampling: SamplingParams
    max_tokens: int
    stop_strings: tuple[str, ...] = ()
    include_stop_string: bool = False
    skip_special_tokens: bool = True
    num_choices: int = 1
    priority: int = 0  # higher first
    spaces_between_special_tokens: bool = False
