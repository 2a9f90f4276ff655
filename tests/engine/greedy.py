"""Greedy output beside the reference's."""

import random

import torch

from tests.checkpoints import VOCAB_SIZE, checkpoint, reference_logits

torch.set_num_threads(1)

# DESIGN: a first mismatch is allowed where the reference's two best logits are this close.
CLOSE = 1e-5


def draw_prompts(seed: int, num: int, longest: int = 200) -> list[list[int]]:
    rng = random.Random(seed)
    lengths = [rng.choice([1, 2, 15, 16, 17, rng.randrange(3, longest)]) for _ in range(num)]
    return [[rng.randrange(2, VOCAB_SIZE) for _ in range(length)] for length in lengths]


def count_mismatches(family: str, prompts: list[list[int]], outputs: list[list[int]]) -> int:
    """Tokens that are not the reference's best; fails on one that is not an allowed tie."""
    num_mismatches = 0
    for prompt, output in zip(prompts, outputs, strict=True):
        logits = reference_logits(checkpoint(family), prompt + output)[len(prompt) - 1 : -1]
        best = logits.topk(2)
        for step, token in enumerate(output):
            if token == int(best.indices[step, 0]):
                continue
            margin = float(best.values[step, 0] - logits[step, token])
            assert margin < CLOSE, f"{family}: token {step} after {len(prompt)} is {margin} off"
            num_mismatches += 1
    return num_mismatches
