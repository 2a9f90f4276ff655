"""Says what a person wants to know about an answer: how fast it came, and from where."""

import time
from dataclasses import asdict
from typing import Any

from penstock import Answer, Chunk
from penstock.cli.messages import plain


class Stopwatch:
    """Notes when the first chunk arrives."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.ttft: float | None = None  # seconds

    def arrived(self, _: Chunk) -> None:
        if self.ttft is None:
            self.ttft = time.perf_counter() - self._started


def tokens_per_second(answer: Answer) -> float | None:
    """Measures the speed after the first token, by the server's clock: messages may hold several
    tokens."""
    timeline = answer.timeline
    seconds = timeline.total_seconds - timeline.first_token_seconds
    num_later = answer.usage.completion_tokens - len(answer.choices)
    return num_later / seconds if num_later > 0 and seconds > 0 else None


def summary(answer: Answer, watch: Stopwatch) -> str:
    """One line for stderr."""
    accepted, usage = answer.accepted, answer.usage
    parts = [f"first token {1000 * (watch.ttft or 0):.0f} ms"]
    if speed := tokens_per_second(answer):
        parts.append(f"{speed:.1f} tokens/s")
    parts.append(f"{usage.completion_tokens} tokens ({answer.finish_reason})")
    parts.append(f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens cached")
    parts.append(workers(accepted.prefill_worker, accepted.decode_worker))
    return " · ".join(parts)


def workers(prefill: str, decode: str) -> str:
    return f"{prefill} → {decode}" if prefill else decode


def as_json(answer: Answer, watch: Stopwatch) -> dict[str, Any]:
    """Plain values, but for the secret by which a stream goes on: that is of no use any more."""
    accepted = asdict(answer.accepted)
    del accepted["resume_secret"]
    return {
        "text": answer.text,
        "choices": [asdict(choice) for choice in answer.choices],
        "accepted": accepted,
        "usage": asdict(answer.usage),
        "timeline": plain(answer.timeline),
        "client": {"ttft_seconds": watch.ttft, "tokens_per_second": tokens_per_second(answer)},
    }
