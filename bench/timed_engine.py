"""An engine that computes nothing and takes its time: what a cost model says, on its own thread.
For clusters of more workers than the machine has cores."""

import time

from cluster.types import DecodeCost, KvLayout, PrefillCost, SampledToken
from engine.batch import Batch, BatchRow, RowResult
from engine.thread import LayerDone

_FIRST_TOKEN, _NUM_TOKENS = 32, 168  # none that ends an answer


class TimedEngine:
    """Its tokens depend on nothing but their position. Sleeps, so that many share a core."""

    def __init__(self, layout: KvLayout, prefill: PrefillCost, decode: DecodeCost) -> None:
        self.layout = layout
        self._prefill = prefill
        self._decode = decode

    def forward(self, batch: Batch, layer_done: LayerDone | None = None) -> list[RowResult]:
        started, seconds = time.perf_counter(), self._seconds(batch)
        for layer in range(self.layout.num_layers):
            due = started + seconds * (layer + 1) / self.layout.num_layers
            time.sleep(max(0.0, due - time.perf_counter()))
            if layer_done is not None:
                layer_done(layer)
        return [_result(row) for row in batch.rows]

    def _seconds(self, batch: Batch) -> float:
        seconds, contexts = 0.0, batch.decode_contexts
        if batch.prompts:
            cost = self._prefill
            seconds += cost.c0 + sum(cost.seconds(*row) - cost.c0 for row in batch.prompts)
        if contexts:
            seconds += self._decode.seconds(sum(contexts), len(contexts))
        return seconds


def _result(row: BatchRow) -> RowResult:
    token_id = _FIRST_TOKEN + row.stop % _NUM_TOKENS
    return RowResult(tokens=tuple(SampledToken(token_id=token_id) for _ in row.choices))
