"""Preble's E2 (ICLR'25, arXiv 2407.00023): exploit the longest match where more is matched than
missed, else explore; among those allowed, the least load cost = L (work ahead) + M (what the
prompt would evict) + P (its missed part).

Preble estimates L from what it assigned within three minutes; here workers report it.
"""

from dataclasses import dataclass

from router.load import Load, Loads
from router.policies.rule import Choice, Prompt, draw_least


@dataclass(frozen=True, slots=True, kw_only=True)
class PrebleE2:
    def begin(self, seed: int) -> int:
        return seed

    def choose(self, prompt: Prompt, loads: Loads, state: int) -> tuple[Choice, int]:
        best = float(prompt.cached.max())
        exploits = best > prompt.num_tokens - best
        scores = tuple(
            _load_cost(prompt, i, load)
            if not exploits or prompt.cached[i] == best
            else float("inf")
            for i, load in enumerate(loads)
        )
        index, state = draw_least(scores, state)
        return Choice(index, scores=scores), state


def _load_cost(prompt: Prompt, index: int, load: Load) -> float:
    num_evicted = max(0.0, prompt.num_new(index) - max(0.0, load.num_free_tokens))
    evicted_s = load.c1 * num_evicted if load.is_size_known else 0.0
    return prompt.wait_s(index, load) + evicted_s + prompt.prefill_s(index, load)
