"""Says what becomes of another router's configuration."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.document.kind import API_VERSION
from router.policy_file.document import PolicyDocument
from router.policy_file.kind import POLICY


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    document: PolicyDocument
    notes: tuple[str, ...]  # sentences: what could not be carried over, and what there is instead


def imported(name: str, spec: Mapping[str, Any], notes: Iterable[str], *, source: str) -> Imported:
    """`spec` as a file says it. Raises ConfigError."""
    mapping = {
        "apiVersion": API_VERSION,
        "kind": POLICY.name,
        "metadata": {"name": name},
        "spec": spec,
    }
    return Imported(document=POLICY.document_of(mapping, source), notes=tuple(notes))
