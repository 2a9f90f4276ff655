"""What a person wants to know about an answer: how fast it came, and from where."""

import time
from dataclasses import asdict
from typing import Any

from google.protobuf.json_format import MessageToDict

from penstock import Answer, Chunk


class Stopwatch:
    """Notes when chunks arrive."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._first: float | None = None
        self._last = self._started
        self._num_first = 0
        self._num_tokens = 0

    def arrived(self, chunk: Chunk) -> None:
        self._last = time.perf_counter()
        self._num_tokens += len(chunk.token_ids)
        if self._first is None:
            self._first, self._num_first = self._last, len(chunk.token_ids)

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token."""
        return None if self._first is None else self._first - self._started

    @property
    def tokens_per_second(self) -> float | None:
        """Of what came after the first message."""
        if self._first is None or self._last <= self._first:
            return None
        return (self._num_tokens - self._num_first) / (self._last - self._first)


def summary(answer: Answer, watch: Stopwatch) -> str:
    """One line for stderr."""
    accepted, usage = answer.accepted, answer.usage
    parts = [f"first token {1000 * (watch.ttft or 0):.0f} ms"]
    if watch.tokens_per_second:
        parts.append(f"{watch.tokens_per_second:.1f} tokens/s")
    parts.append(f"{usage.completion_tokens} tokens ({answer.finish_reason})")
    parts.append(f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens cached")
    parts.append(workers(accepted.prefill_worker, accepted.decode_worker))
    return " · ".join(parts)


def workers(prefill: str, decode: str) -> str:
    return f"{prefill} → {decode}" if prefill else decode


def as_json(answer: Answer, watch: Stopwatch) -> dict[str, Any]:
    return {
        "text": answer.text,
        "choices": [asdict(choice) for choice in answer.choices],
        "accepted": asdict(answer.accepted),
        "usage": asdict(answer.usage),
        "timeline": MessageToDict(
            answer.timeline,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        ),
        "client": {"ttft_seconds": watch.ttft, "tokens_per_second": watch.tokens_per_second},
    }
