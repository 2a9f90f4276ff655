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
        spans, source, destination = list(turns.pairs(turn)), self._source, self._destination
        begin = time.perf_counter()
        for start, to, num_bytes in spans:
            destination[to : to + num_bytes] = source[start : start + num_bytes]
        return time.perf_counter() - begin

    def close(self) -> None:
        """Nothing is left behind."""
