"""What becomes of another router's configuration."""

from dataclasses import dataclass

from router.policy_file import PolicyDocument


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    document: PolicyDocument
    notes: tuple[str, ...]  # sentences: what could not be carried over, and what there is instead
