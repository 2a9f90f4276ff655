"""Members and views with sensible sizes, so that a test names only what it is about."""

from collections.abc import Sequence
from typing import Any

from cluster.types import (
    Fingerprint,
    GrainHash,
    Incarnation,
    KvLayout,
    Member,
    Role,
    WorkerAddress,
    WorkerId,
)
from router.decision import PlacementRequest
from router.index import PrefixIndex
from router.load import Load, Loads
from router.numbering import Ends, Numbering
from router.pair_costs import PairCosts
from router.pool import PoolSnapshot

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


def load(name: str, **changes: Any) -> Load:
    """An idle worker: 5,000 prompt tokens a second, 10 ms a decode step."""
    values: dict[str, Any] = {
        "num_free_tokens": 100_000,
        "num_total_tokens": 100_000,
        "num_unused_tokens": 100_000,
        "max_sequences": 64,
        "token_bytes": 2048,
        "c0": 0.002,
        "c1": 2e-4,
        "d0": 0.01,
        "d1": 1e-7,
        "d2": 0.0005,
    }
    return Load(worker=WorkerId(name), **{**values, **changes})


def snapshot(
    decode: list[Load], prefill: list[Load] | None = None, *, s_per_byte: float = 1e-9
) -> PoolSnapshot:
    """What a pool of these would give, at the time 0."""
    prefill = prefill or []
    decode = [
        each._replace(num_delayed=each.num_delayed or each.num_in_flight + 1) for each in decode
    ]
    costs = PairCosts.uniform(len(prefill) + len(decode), setup_s=0.005, s_per_byte=s_per_byte)
    return PoolSnapshot(Loads([*prefill, *decode], num_prefill=len(prefill)), costs)


def for_pool(request: PlacementRequest, pool: PoolSnapshot) -> PlacementRequest:
    """The same, where it was said of workers by name: as columns of this pool."""
    columns = {
        name: pool.loads.column_of(counts) if (counts := getattr(request, name)) else None
        for name in ("num_ready", "num_held", "num_siblings")
    }
    return request._replace(**columns)


def matched(index: PrefixIndex, hashes: Sequence[GrainHash]) -> dict[WorkerId, int]:
    """How many leading grains each worker holds."""
    return by_worker(index.numbering, index.match(hashes))


def by_worker(numbering: Numbering, ends: Ends) -> dict[WorkerId, int]:
    return {worker: num for num, bits in ends for worker in numbering.workers_of(bits)}
