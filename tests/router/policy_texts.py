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


EVERYTHING = """
apiVersion: penstock/v1
kind: RoutingPolicy
metadata:
  name: everything
spec:
  classes:
    - {name: interactive, ttft: 750ms, itl: 50ms, weight: 4}
    - {name: batch, ttft: 1m, itl: 500ms}
  defaultClass: batch
  tenants: [{name: a, share: 3}, {name: b}]
  queue: {order: fifo, stretch: 0.5}
  admission: {rejectsEarly: true, slack: 1.5, quantile: p99, maxQueued: 100}
  sessions: {ttl: 1h, maxPenalty: 250ms, maxSessions: 10}
  placement:
    rule: priced
    parameters: {mayFetch: false}
    disaggregate: never
  shadow:
    sample: 12.5%
    spec: {placement: {rule: lmetric}}
  canary:
    traffic: 10%
    duration: 90s
    minRequests: 50
    guards: {maxTtftP95Ratio: 1.1, maxErrorRatio: null}
"""
