"""Preble's E2 (ICLR'25, arXiv 2407.00023): exploit the longest match where more is matched than
missed, else explore; among those allowed, the least load cost = L (work ahead) + M (what the
prompt would evict) + P (its missed part).

Preble estimates L from what it assigned within three minutes; here workers report it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from router.policies.rule import Choice, Load, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class PrebleE2:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Sequence[Load], state: int) -> tuple[Choice, int]:
        best = max(load.num_cached for load in loads)
        exploits = best > prompt.num_tokens - best
        scores = tuple(
            _load_cost(prompt, load) if not exploits or load.num_cached == best else float("inf")
            for load in loads
        )
        index, state = draw_least(scores, state)
        return Choice(index, scores=scores), state


def _load_cost(prompt: Prompt, load: Load) -> float:
    num_evicted = max(0, load.num_new(prompt) - load.num_free_tokens)
    evicted_s = load.cost.c1 * num_evicted if load.num_total_tokens else 0.0
    return load.wait_s + evicted_s + load.prefill_s(prompt)
