"""Samples tokens from logits: masks, biases, penalties and logprobs, as in vLLM, of a whole batch.

A row's token depends on its own logits and key only, never on its neighbours in the batch.
"""

import math
from collections.abc import Iterable
from collections.abc import Sequence as Rows

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.types import SampledToken, SamplingParams, TokenLogprob
from engine.drawing import Draw, Drawing
from engine.sequence import Sequence

Integers = npt.NDArray[np.int64]
Changing = tuple[int, SamplingParams, Sequence]  # the row of the logits that a request changes

_HIDDEN = -math.inf


def sample(logits: Tensor, draws: list[Draw], drawing: Drawing) -> list[tuple[SampledToken, ...]]:
    """Tokens for each draw, from the float32 logits [num_draws, vocab_size] of its row."""
    changing = [
        (row, sequence.params.sampling, sequence)
        for row, (sequence, _, _) in enumerate(draws)
        if _changes_logits(sequence.params.sampling, len(sequence.output_ids))
    ]
    picked = drawing(_changed(logits, changing) if changing else logits, draws)
    asks = any(draw.sequence.params.sampling.num_logprobs is not None for draw in draws)
    logprobs = _logprobs(logits, draws, picked) if asks else {}
    return [
        tuple(
            SampledToken(token_id=token_id, logprob=logprobs.get((row, place)))
            for place, token_id in enumerate(token_ids)
        )
        for row, token_ids in enumerate(picked)
    ]


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


def _logprobs(
    logits: Tensor, draws: list[Draw], picked: list[list[int]]
) -> dict[tuple[int, int], TokenLogprob]:
    """By row and place among its choices, where they are asked for; rows that ask for as many best
    tokens together."""
    asking: dict[int, list[tuple[int, int]]] = {}
    for row, (sequence, _, choices) in enumerate(draws):
        if (num_top := sequence.params.sampling.num_logprobs) is not None:
            asking.setdefault(num_top, []).extend((row, place) for place in range(len(choices)))
    found: dict[tuple[int, int], TokenLogprob] = {}
    for num_top, places in asking.items():
        rows = logits[[row for row, _ in places]]
        token_ids = [picked[row][place] for row, place in places]
        found.update(zip(places, token_logprobs(rows, token_ids, num_top), strict=True))
    return found


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


def _changed(logits: Tensor, changing: list[Changing]) -> Tensor:
    """The logits with what their requests change: first who is allowed and who is not, then
    biases, then penalties. The given ones stay as they are."""
    logits = logits.clone()
    _keep_allowed(logits, changing)
    _hide(logits, changing)
    _add_biases(logits, changing)
    _penalise_repetition(logits, changing)
    _penalise_frequency(logits, changing)
    return logits


def _keep_allowed(logits: Tensor, changing: list[Changing]) -> None:
    allowed = [
        (row, params.allowed_token_ids) for row, params, _ in changing if params.allowed_token_ids
    ]
    if allowed:
        places = _places(logits, allowed)
        kept = logits.view(-1)[places]
        logits[[row for row, _ in allowed]] = _HIDDEN
        logits.view(-1)[places] = kept


def _hide(logits: Tensor, changing: list[Changing]) -> None:
    hidden: list[tuple[int, Iterable[int]]] = []
    for row, params, sequence in changing:
        hidden.append((row, params.bad_token_ids))
        hidden.append((row, _ends_of_bad_words(params.bad_word_ids, sequence.output_ids)))
        if len(sequence.output_ids) < params.min_tokens:
            hidden.append((row, params.stop_token_ids))
    logits.view(-1)[_places(logits, hidden)] = _HIDDEN


def _ends_of_bad_words(words: tuple[tuple[int, ...], ...], output_ids: list[int]) -> list[int]:
    """The last tokens of those whose other tokens are the end of the answer so far."""
    return [
        ids[-1] for ids in words if len(ids) == 1 or ids[:-1] == tuple(output_ids[1 - len(ids) :])
    ]


def _add_biases(logits: Tensor, changing: list[Changing]) -> None:
    biased = [(row, params.logit_bias) for row, params, _ in changing if params.logit_bias]
    if biased:
        places = _places(logits, [(row, (token for token, _ in bias)) for row, bias in biased])
        values = [value for _, bias in biased for _, value in bias]
        biases = torch.tensor(values, device=logits.device, dtype=logits.dtype)
        logits.view(-1).index_add_(0, places, biases)


def _penalise_repetition(logits: Tensor, changing: list[Changing]) -> None:
    """Counts prompt and output."""
    seen = [
        (row, sequence.prompt_ids + sequence.output_ids, params.repetition_penalty)
        for row, params, sequence in changing
        if params.repetition_penalty != 1.0
    ]
    if seen:
        places = _places(logits, [(row, token_ids) for row, token_ids, _ in seen])
        by_row = np.array([penalty for *_, penalty in seen], dtype=np.float32)
        penalties = torch.from_numpy(by_row.repeat([len(token_ids) for _, token_ids, _ in seen]))
        penalties = penalties.to(logits.device)
        values = logits.view(-1)[places]
        # A token seen twice is written twice, with the same value.
        values = torch.where(values > 0, values / penalties, values * penalties)
        logits.view(-1)[places] = values


def _penalise_frequency(logits: Tensor, changing: list[Changing]) -> None:
    """Counts the output alone."""
    said = [
        (row, sequence.output_ids)
        for row, params, sequence in changing
        if params.frequency_penalty or params.presence_penalty
    ]
    if said:
        places, counts = np.unique(_flat(logits, said), return_counts=True)
        by_row = np.zeros((2, len(logits)), dtype=np.float32)
        for row, params, _ in changing:
            by_row[:, row] = params.frequency_penalty, params.presence_penalty
        frequency, presence = by_row[:, places // logits.shape[1]]
        penalties = torch.from_numpy(frequency * counts.astype(np.float32) + presence)
        logits.view(-1)[torch.from_numpy(places).to(logits.device)] -= penalties.to(logits.device)


def _places(logits: Tensor, token_ids: Rows[tuple[int, Iterable[int]]]) -> Tensor:
    return torch.from_numpy(_flat(logits, token_ids)).to(logits.device)


def _flat(logits: Tensor, token_ids: Rows[tuple[int, Iterable[int]]]) -> Integers:
    """Where the tokens of each row lie, all rows one behind another."""
    vocab_size = logits.shape[1]
    places = [np.fromiter(ids, dtype=np.int64) + row * vocab_size for row, ids in token_ids]
    return np.concatenate(places) if places else np.empty(0, dtype=np.int64)
