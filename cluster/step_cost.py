"""What a worker's steps cost, fitted while it works. Splits a mixed step into its two parts."""

from dataclasses import dataclass

from cluster.cost import DecodeCostModel, PrefillCostModel
from cluster.types import DecodeCost, PrefillCost


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """The sizes that decide how long a step takes."""

    num_prompt_tokens: int = 0
    num_prompt_context: int = 0  # tokens before those
    num_decodes: int = 0
    num_decode_context: int = 0


class StepCost:
    """Owns the two models of one worker."""

    def __init__(self) -> None:
        self._prefill = PrefillCostModel()
        self._decode = DecodeCostModel()

    @property
    def prefill(self) -> PrefillCost:
        return self._prefill.cost()

    @property
    def decode(self) -> DecodeCost:
        return self._decode.cost()

    def predicted_s(self, shape: StepShape) -> float:
        seconds = 0.0
        if shape.num_prompt_tokens:
            seconds += self.prefill.seconds(shape.num_prompt_tokens, shape.num_prompt_context)
        if shape.num_decodes:
            seconds += self.decode.seconds(shape.num_decode_context, shape.num_decodes)
        return seconds

    def observe(self, shape: StepShape, seconds: float) -> None:
        """A mixed step teaches only the prompt's part: what the decodes should have cost is
        known well, for most steps are decodes alone."""
        if not shape.num_prompt_tokens:
            self._decode.observe(shape.num_decode_context, shape.num_decodes, seconds)
            return
        if shape.num_decodes:
            seconds -= self.decode.seconds(shape.num_decode_context, shape.num_decodes)
        if seconds > 0:
            self._prefill.observe(shape.num_prompt_tokens, shape.num_prompt_context, seconds)
