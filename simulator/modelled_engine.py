"""Says how long a step takes, by the cost models that workers report; nothing is computed.

The fit of a worker's own steps is taken to be perfect: it knows its cost, its slowness too.
"""

from collections.abc import Sequence
from dataclasses import replace

from cluster.types import DecodeCost, ErrorQuantiles, PrefillCost
from engine.batch import Batch, RowResult
from engine.thread import StepResult
from router.policies.rule import draw
from simulator.modelled_sequence import TOKEN
from worker.cost import Row, StepCost

_CHUNK = RowResult()
_DRAWN = RowResult(tokens=(TOKEN,))


class KnownCost(StepCost):
    """Reports what is so, and learns nothing from steps."""

    def __init__(self, prefill: PrefillCost, decode: DecodeCost, *, noise: float = 0.0) -> None:
        """`noise`: a step takes up to this share more or less, evenly."""
        self._true_prefill, self._true_decode = prefill, decode
        self._error = ErrorQuantiles(p90=1.0 + 0.8 * noise, p99=1.0 + 0.98 * noise)
        self.be_slower(1.0)

    @property
    def prefill_error(self) -> ErrorQuantiles:
        return self._error

    @property
    def decode_error(self) -> ErrorQuantiles:
        return self._error

    def be_slower(self, factor: float) -> None:
        decode = self._true_decode
        self.prefill = self._true_prefill.times(factor)
        self.decode = replace(
            decode, d0=decode.d0 * factor, d1=decode.d1 * factor, d2=decode.d2 * factor
        )

    def observe(self, prompts: Sequence[Row], decodes: Sequence[int], seconds: float) -> None:
        pass


class ModelledEngine:
    """Draws the seconds of one worker's steps, one after another."""

    def __init__(
        self, cost: KnownCost, *, noise: float = 0.0, gap_s: float = 0.0, seed: int = 0
    ) -> None:
        """`noise`: a step takes up to this share more or less, evenly. `gap_s`: what passes
        before the next one, of which no cost model knows."""
        self.cost = cost
        self._noise = noise
        self._gap_s = gap_s
        self._seed = seed
        self._num_steps = 0

    def step_s(self, batch: Batch) -> float:
        seconds = self.cost.predicted_s(batch.prompts, batch.decode_contexts)
        return seconds * self._factor(0) + self._gap_s

    def run_ends(self, now_s: float, num_context: int, num_rows: int, num: int) -> list[float]:
        """Says when each of `num` steps of pure decode ends that follow each other."""
        cost, is_noisy, ends = self.cost.decode, self._noise > 0.0, []
        gap_s = self._gap_s
        d0, d1, rows_s = cost.d0, cost.d1, cost.d2 * num_rows
        for index in range(num):
            # To the bit what `DecodeCost.seconds` says: a step by itself takes as long.
            seconds = d0 + d1 * (num_context + index * num_rows) + rows_s
            now_s += (seconds * self._factor(index) if is_noisy else seconds) + gap_s
            ends.append(now_s)
        return ends

    def ran(self, num: int) -> None:
        """Notes that so many of the steps asked for last have been run."""
        self._num_steps += num

    def _factor(self, ahead: int) -> float:
        """A function of the step's number: steps that are put down but never run draw nothing."""
        if not self._noise:
            return 1.0
        share, _ = draw((self._seed << 32) + self._num_steps + ahead)
        return 1.0 + self._noise * (2.0 * share - 1.0)


def result_of(batch: Batch, seconds: float) -> StepResult:
    """Every prompt that ends here, and every answer, gets a token."""
    return StepResult(
        rows=[_DRAWN if row.choices else _CHUNK for row in batch.rows], seconds=seconds
    )
