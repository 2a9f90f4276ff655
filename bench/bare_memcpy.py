"""numpy's copy between two arrays of one process as a yardstick."""

import time

import numpy as np

from bench.kv_cases import Turns


class Memcpy:
    name = "memcpy"

    def __init__(self, num_bytes: int) -> None:
        self._source = np.ones(num_bytes, dtype=np.uint8)
        self._destination = np.ones(num_bytes, dtype=np.uint8)

    def move(self, turns: Turns, turn: int) -> float:
        pairs, source, destination = turns.pairs(turn), self._source, self._destination
        columns = (pairs.source.tolist(), pairs.destination.tolist(), pairs.sizes.tolist())
        begin = time.perf_counter()
        for start, to, num_bytes in zip(*columns, strict=True):
            destination[to : to + num_bytes] = source[start : start + num_bytes]
        return time.perf_counter() - begin

    def close(self) -> None:
        """Nothing is left behind."""
