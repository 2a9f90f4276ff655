"""Members and views with sensible sizes, so that a test names only what it is about."""

from typing import Any

from cluster.types import (
    DecodeCost,
    Fingerprint,
    Incarnation,
    KvLayout,
    Member,
    PrefillCost,
    Role,
    WorkerAddress,
    WorkerId,
)
from router.pool import WorkerView

FINGERPRINT = Fingerprint(
    model_digest="model",
    tokenizer_digest="tokenizer",
    template_digest="template",
    hash_grain=16,
    layout=KvLayout(num_layers=4, num_blocks=1000, block_size=16, num_kv_heads=2, head_dim=32),
)


def member(
    name: str, role: Role = Role.DECODE, *, life: str = "1", max_sequences: int = 64
) -> Member:
    address = WorkerAddress(
        worker_id=WorkerId(name),
        incarnation=Incarnation(life),
        address="127.0.0.1:1",
        transports={},
        fingerprint=FINGERPRINT,
    )
    return Member(
        worker=address, role=role, model="m", context_length=2048, max_sequences=max_sequences
    )


def view(name: str, **changes: Any) -> WorkerView:
    """An idle worker: 5,000 prompt tokens a second, 10 ms a decode step."""
    values: dict[str, Any] = {
        "worker": WorkerId(name),
        "reported_at": 0.0,
        "num_running": 0,
        "num_waiting": 0,
        "num_queued_tokens": 0,
        "num_context_tokens": 0,
        "num_booked_prompts": 0,
        "num_booked_tokens": 0,
        "num_booked_sequences": 0,
        "num_booked_context_tokens": 0,
        "num_free_tokens": 100_000,
        "num_total_tokens": 100_000,
        "max_sequences": 64,
        "token_bytes": 2048,
        "prefill_cost": PrefillCost(c0=0.002, c1=2e-4),
        "decode_cost": DecodeCost(d0=0.01, d1=1e-7, d2=0.0005),
    }
    return WorkerView(**{**values, **changes})
