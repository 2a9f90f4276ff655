"""The engine both workers drive: runs the batch it is given, on one thread at a time.

Sees token ids only. Which sequences run, and where their blocks lie, is the schedulers' matter.
"""

from collections.abc import Callable
from mmap import mmap

import numpy as np
import torch
from torch import Tensor

from cluster.measurements import Measurements
from cluster.types import TokenLogprob
from engine.attention import Query
from engine.attention_choice import choose_attention
from engine.batch import Batch, BatchRow, RowResult
from engine.config import EngineConfig
from engine.drawing import Draw
from engine.drawing_choice import choose_drawing
from engine.kv_cache import DTYPES, KvCache, slot_of, slots_of
from engine.layer_ops_choice import choose_layer_ops
from engine.layers.weights import WeightReader
from engine.model_spec import ModelSpec
from engine.models.decoder import Decoder, StepInputs, WantedTokens
from engine.sampling import sample, token_logprobs

# Logits of so many prompt positions exist at once when prompt logprobs are asked for.
_LOGPROB_ROWS = 64


class Engine:
    """`forward` is all: blocking, deterministic, and free of state but the KV cache."""

    def __init__(
        self,
        spec: ModelSpec,
        config: EngineConfig,
        kv_buffer: Tensor | memoryview | bytearray | mmap | None = None,
        measurements: Measurements | None = None,
    ) -> None:
        """`kv_buffer`, of the layout's `pool_bytes`, stays its owner's; None allocates one.
        Without `measurements` what is timed here is forgotten."""
        torch.set_num_threads(config.num_threads)  # the process's: it has one engine
        self.spec = spec
        self.layout = spec.kv_layout(
            num_blocks=config.num_blocks, block_size=config.block_size, dtype=config.kv_dtype
        )
        self._device = torch.device(config.device)
        self._cache = KvCache(self.layout, kv_buffer, self._device)
        measurements = measurements or Measurements()
        dtype = DTYPES[config.dtype]
        self._attention = choose_attention(
            config.attention, spec.num_heads, self.layout, self._device, dtype, measurements
        )
        weights = WeightReader(config, spec, measurements)
        self._drawing = choose_drawing(self._device)
        ops = choose_layer_ops(spec, self._cache, dtype)
        self._model = Decoder(spec, weights, self._cache, self._attention, ops)

    @torch.inference_mode()
    def forward(
        self, batch: Batch, layer_done: Callable[[int], None] | None = None
    ) -> list[RowResult]:
        """One step. `layer_done(layer)` is called on this thread as soon as that layer's K and V
        of all rows are in the cache."""
        self._cache.copy_blocks(batch.copies)
        if not batch.rows:
            return []
        hidden = self._model.forward(self._inputs(batch), self._layer_signal(layer_done))
        return self._results(batch, hidden)

    def _layer_signal(self, layer_done: Callable[[int], None] | None) -> Callable[[int], None]:
        if layer_done is None:
            return lambda layer: None
        if self._device.type != "cuda":
            return layer_done

        def signal(layer: int) -> None:
            # The write is only queued on the stream; whoever reads it next is another process.
            torch.cuda.current_stream(self._device).synchronize()
            layer_done(layer)

        return signal

    def _inputs(self, batch: Batch) -> StepInputs:
        rows = batch.rows
        size = self.layout.block_size
        numbers: tuple[list[int], ...] = [], [], []
        token_ids, positions, slots = numbers
        for row in rows:
            token_ids += row.sequence.token_ids(row.start, row.stop)
            positions += range(row.start, row.stop)
            table = row.sequence.block_table
            if row.num_new == 1:  # of every answer in every step
                slots.append(slot_of(table, size, row.start))
            else:
                slots += slots_of(table, size, row.start, row.stop).tolist()
        on_device = torch.from_numpy(np.array(numbers, dtype=np.int64)).to(self._device)
        queries = [Query(row.sequence.block_table, row.start, row.num_new) for row in rows]
        return StepInputs(
            token_ids=on_device[0],
            positions=on_device[1],
            slots=on_device[2],
            plan=self._attention.plan(queries),
            wanted=self._wanted(batch),
        )

    def _wanted(self, batch: Batch) -> WantedTokens | None:
        """Picks of each row all tokens, or the last one, or none."""
        tokens: list[int] = []
        queries: list[Query] = []
        stop = 0
        for row in batch.rows:
            stop += row.num_new
            if num_wanted := _num_wanted(row):
                tokens += range(stop - num_wanted, stop)
                queries.append(Query(row.sequence.block_table, row.stop - num_wanted, num_wanted))
        if len(tokens) == stop:
            return None
        return WantedTokens(
            tokens=torch.tensor(tokens, dtype=torch.int64, device=self._device),
            plan=self._attention.plan(queries),
        )

    def _results(self, batch: Batch, hidden: Tensor) -> list[RowResult]:
        """`hidden` holds the wanted tokens of each row in turn, its last one last."""
        prompt_logprobs: list[tuple[TokenLogprob, ...]] = []
        last_tokens, draws = [], []
        first = 0
        for row in batch.rows:
            num_wanted = _num_wanted(row)
            prompt_logprobs.append(self._prompt_logprobs(row, hidden[first : first + num_wanted]))
            first += num_wanted
            if row.choices:
                last_tokens.append(first - 1)
                draws.append(Draw(row.sequence, row.stop, row.choices))
        if len(draws) < len(hidden):
            hidden = hidden[last_tokens]
        tokens = iter(sample(self._model.logits(hidden), draws, self._drawing) if draws else ())
        return [
            RowResult(tokens=next(tokens) if row.choices else (), prompt_logprobs=logprobs)
            for row, logprobs in zip(batch.rows, prompt_logprobs, strict=True)
        ]

    def _prompt_logprobs(self, row: BatchRow, hidden: Tensor) -> tuple[TokenLogprob, ...]:
        if not row.want_prompt_logprobs:
            return ()
        # Position p predicts p + 1; behind the prompt's last token there is none of it.
        targets = row.sequence.prompt_ids[row.start + 1 : row.stop + 1]
        num_top = row.sequence.params.sampling.num_prompt_logprobs or 0
        found: list[TokenLogprob] = []
        for first in range(0, len(targets), _LOGPROB_ROWS):
            part = targets[first : first + _LOGPROB_ROWS]
            logits = self._model.logits(hidden[first : first + len(part)])
            found += token_logprobs(logits, part, num_top)
        return tuple(found)


def _num_wanted(row: BatchRow) -> int:
    """Says how many of a row's last hidden states are used."""
    return row.num_new if row.want_prompt_logprobs else min(1, len(row.choices))
