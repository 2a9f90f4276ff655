"""What is moved: so many spans of so many bytes, from another part of the pools every time."""

import re
from dataclasses import dataclass

import numpy as np

from kv_transfer.geometry import SpanPairs

UNITS = {"KiB": 2**10, "MiB": 2**20}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    num_spans: int = 1
    span_bytes: int

    @property
    def num_bytes(self) -> int:
        return self.num_spans * self.span_bytes

    def __str__(self) -> str:
        unit = "MiB" if self.span_bytes % UNITS["MiB"] == 0 else "KiB"
        size = f"{self.span_bytes / UNITS[unit]:g}{unit}"
        return size if self.num_spans == 1 else f"{self.num_spans}x{size}"


def parse_case(text: str) -> Case:
    """'64KiB', '4000x16KiB'. Raises ValueError."""
    found = re.fullmatch(r"(?:(\d{1,6})x)?(\d{1,6})(KiB|MiB)", text)
    if not found or not int(found[1] or 1) or not int(found[2]):
        raise ValueError(f"'{text}' is not a case: write 64KiB, or 4000x16KiB.")
    return Case(num_spans=int(found[1] or 1), span_bytes=int(found[2]) * UNITS[found[3]])


class Turns:
    """The spans of every turn. Two processes that make the same get the same.

    Source and destination are drawn apart and without repetition: what a turn touches is used
    again only after all of the pool was.
    """

    def __init__(self, case: Case, pool_bytes: int) -> None:
        """Raises ValueError where the pool is smaller than the case."""
        if pool_bytes < case.num_bytes:
            raise ValueError(f"{case} does not fit into a pool of {pool_bytes} bytes.")
        dice = np.random.default_rng(0)
        self.case = case
        self._source = dice.permutation(pool_bytes // case.span_bytes) * case.span_bytes
        self._destination = dice.permutation(pool_bytes // case.span_bytes) * case.span_bytes
        self._sizes = np.full(case.num_spans, case.span_bytes, dtype=np.int64)

    @property
    def num_until_repeated(self) -> int:
        return len(self._source) // self.case.num_spans

    def pairs(self, turn: int) -> SpanPairs:
        first = turn % self.num_until_repeated * self.case.num_spans
        stop = first + self.case.num_spans
        return SpanPairs(
            source=self._source[first:stop],
            destination=self._destination[first:stop],
            sizes=self._sizes,
        )


def share(pairs: SpanPairs, number: int, of: int) -> SpanPairs:
    """One of `of` parts of nearly equal size: of the spans, or of a single span's bytes."""
    if len(pairs) > 1:
        part = np.array_split(np.arange(len(pairs)), of)[number]
        return SpanPairs(
            source=pairs.source[part], destination=pairs.destination[part], sizes=pairs.sizes[part]
        )
    edges = np.linspace(0, pairs.num_bytes, of + 1).astype(np.int64)
    start, stop = edges[number : number + 1], edges[number + 1 : number + 2]
    return SpanPairs(
        source=pairs.source + start, destination=pairs.destination + start, sizes=stop - start
    )
