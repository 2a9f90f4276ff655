"""Tells which workers fit together: the one home of what is compared, and how a difference reads.

Block size, block count and the heads that a pool holds may differ between any two. So may the
dtype, as far as KV can go from one to the other without loss, or the receiver allows the loss.
"""

from collections.abc import Mapping, Sequence

from cluster.types import Fingerprint, KvLayout
from cluster.wire_version import are_neighbors

# What a worker and whoever hashes or tokenises for it must share.
IDENTITY = ("model_digest", "tokenizer_digest", "template_digest", "hash_grain")
_WIRE = ("wire_version",)
_WIDER: Mapping[str, frozenset[str]] = {
    "float32": frozenset(),
    "bfloat16": frozenset({"float32"}),
    "float16": frozenset({"float32"}),
}


def differences(ours: object, theirs: object, names: Sequence[str]) -> list[str]:
    """A line for each of these attributes in which two values differ."""
    values = ((name, getattr(ours, name), getattr(theirs, name)) for name in names)
    return [f"{name}: {mine} and {other}" for name, mine, other in values if mine != other]


def is_lossless(source: str, destination: str) -> bool:
    """Tells whether each number of one dtype is one of the other's, too."""
    return source == destination or destination in _WIDER[source]


def layout_mismatch(ours: KvLayout, theirs: KvLayout) -> list[str]:
    """Tells why KV can never move between two pools, a line each."""
    lines = differences(ours, theirs, ("num_layers", "num_planes", "head_dim", "windows"))
    if ours.num_model_heads != theirs.num_model_heads:
        lines.append(f"num_kv_heads: {ours.num_model_heads} and {theirs.num_model_heads}")
    return lines


def mismatch(ours: Fingerprint, theirs: Fingerprint) -> list[str]:
    """Tells why two workers cannot be of one cluster, a line each. While that is upgraded some of
    them speak the wire version before."""
    lines = differences(ours, theirs, IDENTITY) + layout_mismatch(ours.layout, theirs.layout)
    if not are_neighbors(ours.wire_version, theirs.wire_version):
        lines += differences(ours, theirs, _WIRE)
    return lines


def kv_mismatch(ours: Fingerprint, theirs: Fingerprint) -> list[str]:
    """Tells why two workers can never exchange KV, whichever writes, a line each."""
    return list(dict.fromkeys(mismatch(ours, theirs) + differences(ours, theirs, _WIRE)))


def loss_refused(source: Fingerprint, destination: Fingerprint) -> list[str]:
    """Tells why one worker's KV may not be written into the other's pool though it could, as
    lines."""
    wide, narrow = source.layout.dtype, destination.layout.dtype
    if is_lossless(wide, narrow) or destination.wire_dtype is not None:
        return []
    return [f"dtype: {wide} does not fit {narrow}, unless the receiver's 'wire_dtype' allows it"]
