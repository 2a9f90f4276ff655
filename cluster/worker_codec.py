"""Worker addresses, fingerprints and members on the wire, and back."""

from typing import Final

from cluster.errors import InvalidRequest
from cluster.types import (
    DTYPE_BYTES,
    DrainReport,
    Fingerprint,
    Incarnation,
    KvLayout,
    Member,
    Role,
    WorkerAddress,
    WorkerId,
)
from penstock.v1 import worker_pb2

ROLES: Final = {Role.PREFILL: worker_pb2.ROLE_PREFILL, Role.DECODE: worker_pb2.ROLE_DECODE}
_ROLES_BACK: Final = {number: role for role, number in ROLES.items()}
MAX_PAST_LIVES: Final = 8
MAX_METRICS_CHARS: Final = 264  # the longest name of a host, brackets, a port


def fingerprint_to_pb(fingerprint: Fingerprint) -> worker_pb2.Fingerprint:
    layout = fingerprint.layout
    return worker_pb2.Fingerprint(
        model_digest=fingerprint.model_digest,
        tokenizer_digest=fingerprint.tokenizer_digest,
        template_digest=fingerprint.template_digest,
        kv_dtype=layout.dtype,
        hash_grain=fingerprint.hash_grain,
        num_layers=layout.num_layers,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        block_size=layout.block_size,
        num_blocks=layout.num_blocks,
        wire_version=fingerprint.wire_version,
        num_planes=layout.num_planes,
        first_head=layout.first_head,
        total_heads=layout.total_heads,
        windows=[window or 0 for window in layout.windows],
        wire_dtype=fingerprint.wire_dtype,
    )


def fingerprint_from_pb(message: worker_pb2.Fingerprint) -> Fingerprint:
    return Fingerprint(
        model_digest=message.model_digest,
        tokenizer_digest=message.tokenizer_digest,
        template_digest=message.template_digest,
        hash_grain=message.hash_grain,
        layout=_layout_from_pb(message),
        wire_version=message.wire_version,
        wire_dtype=message.wire_dtype or None,
    )


def _layout_from_pb(message: worker_pb2.Fingerprint) -> KvLayout:
    layout = KvLayout(
        num_layers=message.num_layers,
        num_blocks=message.num_blocks,
        block_size=message.block_size,
        num_kv_heads=message.num_kv_heads,
        head_dim=message.head_dim,
        dtype=message.kv_dtype,
        num_planes=message.num_planes,
        first_head=message.first_head,
        total_heads=message.total_heads,
        windows=tuple(window or None for window in message.windows),
    )
    if problem := _layout_problem(layout):
        raise InvalidRequest("worker.fingerprint", f"A worker's KV layout cannot be: {problem}.")
    return layout


def _layout_problem(layout: KvLayout) -> str:
    if layout.dtype not in DTYPE_BYTES:
        return f"its dtype is '{layout.dtype[:32]}', not one of {', '.join(DTYPE_BYTES)}"
    if layout.num_planes not in (1, 2):
        return f"it has {layout.num_planes} planes, not K and V or one latent"
    if len(layout.windows) not in (0, layout.num_layers):
        return f"it has {len(layout.windows)} windows for {layout.num_layers} layers"
    if layout.heads.stop > layout.num_model_heads:
        return f"it holds heads up to {layout.heads.stop} of {layout.num_model_heads}"
    return ""


def address_to_pb(worker: WorkerAddress) -> worker_pb2.WorkerAddress:
    return worker_pb2.WorkerAddress(
        worker_id=worker.worker_id,
        incarnation=worker.incarnation,
        address=worker.address,
        transports=worker.transports,
        fingerprint=fingerprint_to_pb(worker.fingerprint),
    )


def address_from_pb(message: worker_pb2.WorkerAddress) -> WorkerAddress:
    for field in ("worker_id", "incarnation", "address"):
        if not getattr(message, field):
            raise InvalidRequest(f"worker.{field}", f"A worker address needs '{field}'.")
    return WorkerAddress(
        worker_id=WorkerId(message.worker_id),
        incarnation=Incarnation(message.incarnation),
        address=message.address,
        transports=dict(message.transports),
        fingerprint=fingerprint_from_pb(message.fingerprint),
    )


def member_to_pb(member: Member, *, ttl_s: float = 0.0) -> worker_pb2.RegisterRequest:
    return worker_pb2.RegisterRequest(
        worker=address_to_pb(member.worker),
        role=ROLES[member.role],
        model=member.model,
        context_length=member.context_length,
        max_sequences=member.max_sequences,
        ttl_seconds=ttl_s,
        past_lives=member.past_lives[-MAX_PAST_LIVES:],
        metrics=member.metrics,
    )


def member_from_pb(message: worker_pb2.RegisterRequest) -> Member:
    """The lease, `ttl_seconds`, is the caller's to read: it is not part of the member."""
    role = role_from_pb(message.role)
    if role is None:
        raise InvalidRequest("role", "A member has a role: give prefill or decode.")
    if len(message.metrics) > MAX_METRICS_CHARS:
        raise InvalidRequest("metrics", "Where a member is scraped is HOST:PORT, and not so long.")
    return Member(
        worker=address_from_pb(message.worker),
        role=role,
        model=message.model,
        context_length=message.context_length,
        max_sequences=message.max_sequences,
        past_lives=tuple(map(Incarnation, message.past_lives[-MAX_PAST_LIVES:])),
        metrics=message.metrics,
    )


def drain_report_to_pb(drain: DrainReport) -> worker_pb2.DrainReport:
    return worker_pb2.DrainReport(
        seconds=drain.seconds,
        left_seconds=drain.left_s,
        then=ROLES[drain.then] if drain.then is not None else None,
        ends=drain.ends,
    )


def drain_report_from_pb(message: worker_pb2.DrainReport) -> DrainReport:
    return DrainReport(
        seconds=message.seconds,
        left_s=message.left_seconds,
        then=role_from_pb(message.then),
        ends=message.ends,
    )


def role_from_pb(role: worker_pb2.Role) -> Role | None:
    """None where none is said. Raises InvalidRequest for one that does not exist."""
    if role == worker_pb2.ROLE_UNSPECIFIED:
        return None
    if (known := _ROLES_BACK.get(role)) is None:
        raise InvalidRequest("role", f"Role {role} is unknown: give prefill or decode.")
    return known
