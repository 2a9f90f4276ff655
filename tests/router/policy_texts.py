"""Policies as files say them, so that a test names only what it is about."""

from router.policy_file.kind import POLICY
from router.rollout.rollout import Offer


def policy_text(stretch: float = 1.0, *, name: str = "p", more: str = "") -> str:
    """`more`: further lines of the spec, indented by two. Another stretch is another policy."""
    return (
        f"apiVersion: penstock/v1\nkind: RoutingPolicy\nmetadata: {{name: {name}}}\n"
        f"spec:\n  queue: {{stretch: {stretch}}}\n{more}"
    )


def offer(stretch: float = 1.0, *, more: str = "", share: float | None = None) -> Offer:
    text = policy_text(stretch, more=more)
    return Offer(text=text, document=POLICY.parse(text), source="test", canary_share=share)
