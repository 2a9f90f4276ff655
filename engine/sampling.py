"""Draws tokens from logits: penalties, masks, filters, keyed draws and logprobs, as in vLLM.

A row's draw depends on its own logits and key only, never on its neighbours in the batch.
"""

import math
import struct
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from cluster.types import SampledToken, SamplingParams, TokenLogprob
from engine.sequence import Sequence

_HIDDEN = -math.inf


class Draw(NamedTuple):
    """Sample the token at `position` of `sequence`, once for each choice."""

    sequence: Sequence
    position: int
    choices: tuple[int, ...]


def sample(logits: Tensor, draws: list[Draw]) -> list[tuple[SampledToken, ...]]:
    """Tokens for each draw, from the float32 logits [num_draws, vocab_size] of its row."""
    if all(_is_plain(draw.sequence.params.sampling, draw.sequence) for draw in draws):
        best = logits.max(-1).indices.tolist()  # three times as fast as argmax
        return [
            tuple(SampledToken(token_id=token_id) for _ in draw.choices)
            for token_id, draw in zip(best, draws, strict=True)
        ]
    return [_sample_row(row, draw) for row, draw in zip(logits, draws, strict=True)]


def token_logprobs(logits: Tensor, token_ids: list[int], num_top: int) -> list[TokenLogprob]:
    """The logprob of each row's token under the model itself, and its `num_top` best tokens."""
    logprobs = logits.log_softmax(-1)
    ids = torch.tensor(token_ids, device=logits.device)
    chosen = logprobs.gather(1, ids[:, None])[:, 0].tolist()
    best = logprobs.topk(min(num_top, logits.shape[-1]))
    values, tokens = best.values.tolist(), best.indices.tolist()
    return [
        TokenLogprob(
            token_id=token_id,
            logprob=chosen[row],
            top=tuple(zip(tokens[row], values[row], strict=True)),
        )
        for row, token_id in enumerate(token_ids)
    ]


def _is_plain(params: SamplingParams, sequence: Sequence) -> bool:
    return (
        params.temperature == 0
        and params.num_logprobs is None
        and not _changes_logits(params, len(sequence.output_ids))
    )


def _changes_logits(params: SamplingParams, num_output: int) -> bool:
    return bool(
        params.logit_bias
        or params.allowed_token_ids
        or params.bad_token_ids
        or params.bad_word_ids
        or num_output < params.min_tokens
        or params.frequency_penalty
        or params.presence_penalty
        or params.repetition_penalty != 1.0
    )


def _sample_row(raw: Tensor, draw: Draw) -> tuple[SampledToken, ...]:
    sequence, params = draw.sequence, draw.sequence.params.sampling
    logits = raw
    if _changes_logits(params, len(sequence.output_ids)):
        logits = raw.clone()
        _mask(logits, params, sequence.output_ids)
        _penalise(logits, params, sequence)
    token_ids = _pick(logits, params, draw)
    if params.num_logprobs is None:
        return tuple(SampledToken(token_id=token_id) for token_id in token_ids)
    logprobs = token_logprobs(raw.expand(len(token_ids), -1), token_ids, params.num_logprobs)
    return tuple(
        SampledToken(token_id=token_id, logprob=logprob)
        for token_id, logprob in zip(token_ids, logprobs, strict=True)
    )


def _pick(logits: Tensor, params: SamplingParams, draw: Draw) -> list[int]:
    if params.temperature == 0:
        return [int(logits.argmax())] * len(draw.choices)
    # From the best one down, so that no temperature is too low to divide by.
    scores, token_ids = _candidates((logits - logits.max()) / params.temperature, params)
    picks = []
    for choice in draw.choices:
        noise = gumbel_noise(params.seed, choice, draw.position, token_ids)
        index = _best_in_nucleus(scores, noise.add_(scores), params.top_p)
        picks.append(int(token_ids[index]))
    return picks


def _mask(logits: Tensor, params: SamplingParams, output_ids: list[int]) -> None:
    if params.allowed_token_ids:
        allowed = torch.tensor(params.allowed_token_ids, device=logits.device)
        kept = logits[allowed]
        logits.fill_(_HIDDEN)
        logits[allowed] = kept
    if params.bad_token_ids:
        logits[torch.tensor(params.bad_token_ids, device=logits.device)] = _HIDDEN
    if ends := _ends_of_bad_words(params.bad_word_ids, output_ids):
        logits[torch.tensor(ends, device=logits.device)] = _HIDDEN
    if len(output_ids) < params.min_tokens and params.stop_token_ids:
        logits[torch.tensor(params.stop_token_ids, device=logits.device)] = _HIDDEN
    if params.logit_bias:
        ids, biases = zip(*params.logit_bias, strict=True)
        index = torch.tensor(ids, device=logits.device)
        logits.index_add_(0, index, torch.tensor(biases, device=logits.device, dtype=logits.dtype))


def _ends_of_bad_words(words: tuple[tuple[int, ...], ...], output_ids: list[int]) -> list[int]:
    """The last tokens of those whose other tokens are the end of the answer so far."""
    return [
        ids[-1] for ids in words if len(ids) == 1 or ids[:-1] == tuple(output_ids[1 - len(ids) :])
    ]


def _penalise(logits: Tensor, params: SamplingParams, sequence: Sequence) -> None:
    """Repetition counts prompt and output; frequency and presence the output alone."""
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sequence.prompt_ids + sequence.output_ids, device=logits.device)
        values = logits[seen]
        penalty = params.repetition_penalty
        # A token seen twice is written twice, with the same value.
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if (params.frequency_penalty or params.presence_penalty) and sequence.output_ids:
        output = torch.tensor(sequence.output_ids, device=logits.device)
        counts = output.bincount(minlength=len(logits))
        logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)


def _candidates(scores: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The scores and ids of the tokens that min-p and then top-k leave; the best score is 0."""
    token_ids = torch.arange(len(scores), device=scores.device)
    if params.min_p > 0:
        token_ids = (scores >= math.log(params.min_p)).nonzero()[:, 0]
        scores = scores[token_ids]
    if 0 < params.top_k < len(scores):
        best = scores.topk(params.top_k)
        scores, token_ids = best.values, token_ids[best.indices]
    return scores, token_ids


def _best_in_nucleus(scores: Tensor, noisy_scores: Tensor, top_p: float) -> int:
    """The best of the fewest tokens whose share reaches `top_p`, found without sorting.

    A token belongs to them if those above it fall short of `top_p` (so equal ones stand or fall
    together); if the best one does not, neither does any below it. Changes `noisy_scores`.
    """
    best = int(noisy_scores.argmax())
    if top_p >= 1:
        return best
    shares = scores.softmax(0)
    while float(shares.dot((scores > scores[best]).to(shares.dtype))) >= top_p:
        noisy_scores.masked_fill_(scores <= scores[best], _HIDDEN)
        best = int(noisy_scores.argmax())
    return best


# The constants of splitmix64, as signed integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)), (31, 1))


def gumbel_noise(seed: int, choice: int, position: int, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, for int64 `token_ids`: the token with the largest sum of
    log-probability and noise is a draw from the distribution.

    Unlike one uniform number against the cumulative distribution, a rounding error in the
    probabilities then changes the draw only where two sums are that close.
    """
    uniform = _uniform(_key(seed, choice, position), token_ids)
    # -log(-log1p(-u)): the largest noise comes from u near 0, where floats are finest.
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _key(seed: int, choice: int, position: int) -> int:
    message = struct.pack("<QQQ", seed & (1 << 64) - 1, choice, position)
    return int.from_bytes(blake2b(message, digest_size=8).digest(), "little", signed=True)


def _uniform(key: int, token_ids: Tensor) -> Tensor:
    """Element `token_id` of the splitmix64 stream that starts at `key`, as float32 in (0, 1]."""
    state = (token_ids + 1).mul_(_GOLDEN).add_(key)
    for bits, factor in _ROUNDS:
        state.bitwise_xor_(_shifted(state, bits)).mul_(factor)
    return _shifted(state, 11).to(torch.float32).add_(0.5).mul_(2.0**-53)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch has only the arithmetic one."""
    return (state >> bits).bitwise_and_((1 << (64 - bits)) - 1)
