"""Recorded or invented traffic: when requests came, how long they were, what they shared.

Two public formats are read. Mooncake (FAST'25): one JSON object a line with `timestamp` in ms,
`input_length`, `output_length` and `hash_ids`, the prefix-chained ids of its 512-token grains.
Azure (2023): CSV `TIMESTAMP,ContextTokens,GeneratedTokens`, without any identity of content.
"""

import csv
import gzip
import io
import json
import random
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import IO, Any

from cluster.errors import ConfigError
from cluster.types import GrainHash

MOONCAKE_GRAIN = 512
MAX_REQUESTS = 5_000_000
MAX_TOKENS = 10_000_000
NO_LIMIT = 1 << 30
_MAX_LINE = 4 << 20
_LEAST_BIN_S = 0.5
_AZURE_COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    arrival_s: float  # since the trace began
    num_prompt_tokens: int
    num_output_tokens: int
    max_output_tokens: int = NO_LIMIT  # that the client asked for: all that the router knows
    grains: tuple[GrainHash, ...]  # chain hashes of the prompt, the last one perhaps partial


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in order of arrival."""

    name: str
    grain: int  # tokens
    requests: tuple[TraceRequest, ...]

    @property
    def duration_s(self) -> float:
        return self.requests[-1].arrival_s if self.requests else 0.0

    @property
    def num_prompt_tokens(self) -> int:
        return sum(request.num_prompt_tokens for request in self.requests)

    def ideal_hit_tokens(self) -> int:
        """Prompt tokens that an endless cache would have held: whole grains seen before, up to
        the first that was not, and never the last token, which is always computed."""
        seen: set[GrainHash] = set()
        num_hits = 0
        for request in self.requests:
            known = next(
                (i for i, grain in enumerate(request.grains) if grain not in seen),
                len(request.grains),
            )
            num_hits += min(known * self.grain, request.num_prompt_tokens - 1)
            seen.update(request.grains)
        return num_hits

    def at_rate(self, factor: float) -> "Trace":
        """The same requests, `factor` times as fast."""
        faster = (replace(each, arrival_s=each.arrival_s / factor) for each in self.requests)
        return replace(self, requests=tuple(faster))


def load_trace(path: Path, *, seed: int = 0, limit: int | None = None) -> Trace:
    """Reads a trace, `.gz` or not; the format is told by its first line.

    Arrivals that were recorded in bins of some seconds are spread evenly inside their bins:
    replayed raw they would come in herds that never were. Seeded.

    Raises ConfigError with the line's number where the file is not what it should be.
    """
    try:
        with _opened(path) as file:
            first = file.readline(_MAX_LINE)
            lines = _lines(first, file)
            is_azure = first.strip() == ",".join(_AZURE_COLUMNS)
            rows = _azure_requests(lines) if is_azure else _mooncake_requests(lines)
            requests = _taken(rows, min(limit or MAX_REQUESTS, MAX_REQUESTS))
    except (OSError, UnicodeError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"The trace {path} cannot be read: {why}.") from error
    except ValueError as error:
        raise ConfigError(f"The trace {path}, {error}") from error
    if not requests:
        raise ConfigError(f"The trace {path} holds no requests.")
    return Trace(
        name=path.name, grain=MOONCAKE_GRAIN, requests=_spread(requests, random.Random(seed))
    )


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8")
    return path.open(encoding="utf-8")


def _lines(first: str, file: IO[str]) -> Iterator[tuple[int, str]]:
    number, line = 1, first
    while line:
        if len(line) >= _MAX_LINE:
            raise ValueError(f"line {number}: it is longer than {_MAX_LINE} characters.")
        if line.strip():
            yield number, line
        number, line = number + 1, file.readline(_MAX_LINE)


def _taken(rows: Iterator[TraceRequest], limit: int) -> list[TraceRequest]:
    requests = [row for _, row in zip(range(limit), rows, strict=False)]
    start_s = min((each.arrival_s for each in requests), default=0.0)
    return [replace(each, arrival_s=each.arrival_s - start_s) for each in requests]


def _mooncake_requests(lines: Iterator[tuple[int, str]]) -> Iterator[TraceRequest]:
    for number, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # too many digits, brackets in brackets
            raise ValueError(f"line {number}: it is neither JSON nor a known header.") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: give an object with timestamp, input_length, ...")
        yield _mooncake_request(number, row)


def _mooncake_request(number: int, row: Mapping[str, Any]) -> TraceRequest:
    num_prompt = _count(number, row, "input_length", least=1)
    ids = row.get("hash_ids")
    num_grains = -(-num_prompt // MOONCAKE_GRAIN)
    if not isinstance(ids, list) or len(ids) != num_grains:
        raise ValueError(
            f"line {number}: 'hash_ids' must list {num_grains} ids, one for each "
            f"{MOONCAKE_GRAIN} of the {num_prompt} prompt tokens."
        )
    if not all(type(each) is int and 0 <= each < 1 << 64 for each in ids):
        raise ValueError(f"line {number}: 'hash_ids' must be whole numbers from 0 on.")
    return TraceRequest(
        arrival_s=_count(number, row, "timestamp", most=1 << 53) / 1e3,
        num_prompt_tokens=num_prompt,
        num_output_tokens=max(1, _count(number, row, "output_length")),
        grains=tuple(grain_of(each) for each in ids),
    )


def _azure_requests(lines: Iterator[tuple[int, str]]) -> Iterator[TraceRequest]:
    next(lines)  # the header
    for number, line in lines:
        [values] = csv.reader([line])
        if len(values) != len(_AZURE_COLUMNS):
            raise ValueError(f"line {number}: give {', '.join(_AZURE_COLUMNS)}.")
        row = dict(zip(_AZURE_COLUMNS, values, strict=True))
        num_prompt = _count(number, row, "ContextTokens", least=1)
        # Nothing is known to be shared: each prompt has grains of its own.
        own = range(number << 32, (number << 32) + -(-num_prompt // MOONCAKE_GRAIN))
        yield TraceRequest(
            arrival_s=_seconds(number, row["TIMESTAMP"]),
            num_prompt_tokens=num_prompt,
            num_output_tokens=max(1, _count(number, row, "GeneratedTokens")),
            grains=tuple(map(grain_of, own)),
        )


def grain_of(number: int) -> GrainHash:
    """An invented chain hash: traces have ids instead."""
    return GrainHash(number.to_bytes(16, "big"))


def _count(
    number: int, row: Mapping[str, Any], key: str, *, least: int = 0, most: int = MAX_TOKENS
) -> int:
    value = row.get(key)
    if isinstance(value, str) and value.strip().isdigit() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(
            f"line {number}: '{key}' must be a whole number from {least} to {most}, "
            f"not {str(value)[:40]!r}."
        )
    return value


def _seconds(number: int, text: str) -> float:
    try:
        # Seven digits of a second are written; Python reads six.
        return datetime.fromisoformat(text[:26]).timestamp()
    except ValueError as error:
        raise ValueError(f"line {number}: TIMESTAMP must be a date, not {text[:40]!r}.") from error


def _spread(requests: list[TraceRequest], chances: random.Random) -> tuple[TraceRequest, ...]:
    bin_s = _bin_s(requests)
    spread = [
        replace(each, arrival_s=each.arrival_s + bin_s * chances.random()) for each in requests
    ]
    return tuple(sorted(spread, key=lambda each: each.arrival_s))


def _bin_s(requests: list[TraceRequest]) -> float:
    """Says how far apart the moments are at which several requests came; 0: they were not binned.
    The usual distance, for recorded bins wobble by a millisecond."""
    moments = sorted({each.arrival_s for each in requests})
    if len(moments) < 3 or len(requests) < 2 * len(moments):
        return 0.0
    gap_s = median(later - earlier for earlier, later in pairwise(moments))
    return gap_s if gap_s >= _LEAST_BIN_S else 0.0
