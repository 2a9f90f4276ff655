"""Chooses who draws tokens: the kernel for this processor where it can be had and is right, else
torch."""

import logging

import torch

from cluster.compiled import CompileError
from cluster.types import ComputeRequest, GenerationParams, SamplingParams
from engine.cpu_kernels.native_sampling import NativeDrawing
from engine.drawing import Draw, Drawing, draw_plainly
from engine.kernel_error import NoKernelError
from engine.sequence import Sequence

TRIED_TOKENS = 1000
NUM_TRIED = 8  # of each kind
KINDS = (
    SamplingParams(seed=1, temperature=1.5),
    SamplingParams(seed=2, temperature=1.5, top_k=20),
    SamplingParams(seed=3, temperature=1.5, top_p=0.8),
)

logger = logging.getLogger(__name__)


def choose_drawing(device: torch.device) -> Drawing:
    if device.type != "cpu":
        return draw_plainly
    try:
        native = NativeDrawing()
    except (CompileError, NoKernelError) as error:
        logger.warning("Tokens are drawn by torch, which is slower: %s", error)
        return draw_plainly
    draws = [
        Draw(_sequence(kind), position, (0, 1)) for kind in KINDS for position in range(NUM_TRIED)
    ]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(draws), TRIED_TOKENS, generator=generator)
    if native(logits, draws) == draw_plainly(logits, draws):
        return native
    logger.warning("Tokens are drawn by torch: what the kernel draws on this processor is wrong.")
    return draw_plainly


def _sequence(sampling: SamplingParams) -> Sequence:
    params = GenerationParams(sampling=sampling, max_tokens=1)
    return Sequence(
        ComputeRequest(request_id="", prompt_ids=[0], params=params, hash_key=bytes(32))
    )
