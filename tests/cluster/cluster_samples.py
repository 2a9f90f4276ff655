"""Members and fingerprints to test with."""

from dataclasses import replace
from typing import Any

from cluster.types import Fingerprint, Incarnation, KvLayout, Member, Role, WorkerAddress, WorkerId

LAYOUT = KvLayout(num_layers=2, num_blocks=64, block_size=16, num_kv_heads=2, head_dim=8)
FINGERPRINT = Fingerprint(
    model_digest="model",
    tokenizer_digest="tokenizer",
    template_digest="template",
    hash_grain=16,
    layout=LAYOUT,
)


def member(
    worker_id: str = "d0",
    incarnation: str = "1",
    *,
    role: Role = Role.DECODE,
    fingerprint: Fingerprint = FINGERPRINT,
    port: int = 1,
) -> Member:
    worker = WorkerAddress(
        worker_id=WorkerId(worker_id),
        incarnation=Incarnation(incarnation),
        address=f"127.0.0.1:{port}",
        transports={"shared_memory": "/run/pool", "a": "b"},
        fingerprint=fingerprint,
    )
    return Member(worker=worker, role=role, model="m", context_length=2048, max_sequences=16)


def with_layout(**changes: Any) -> Fingerprint:
    return replace(FINGERPRINT, layout=replace(LAYOUT, **changes))
