"""Finds what is allowed in a policy but hardly meant. Each risk is a sentence with its place."""

from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Final

from cluster.document.units import unit_of
from router.policy_file.document import PolicyDocument, PolicySpec, effective_spec
from router.policy_settings import CanarySettings, Order

_LEAST_STEP_S: Final = 0.001  # no model that is served decodes a token in less
_BLIND: Final = {"least_work", "power_of_two", "random", "round_robin"}
_LONG_STRETCH: Final = 20.0
_MOST_CANARY: Final = 0.5


def risks(document: PolicyDocument) -> list[str]:
    spec = document.spec
    found = [f"'spec.{sentence}" for sentence in _spec_risks(spec)]
    if spec.shadow:
        found += [f"'spec.shadow.spec.{sentence}" for sentence in _spec_risks(spec.shadow.spec)]
        if effective_spec(spec.shadow.spec) == _without_trials(spec):
            found.append("'spec.shadow' is the same policy: it compares nothing.")
    return found


def _spec_risks(spec: PolicySpec) -> Iterator[str]:
    for check in _CHECKS:
        yield from check(spec)


def _class_risks(spec: PolicySpec) -> Iterator[str]:
    for index, each in enumerate(spec.classes):
        place = f"classes[{index}]"
        if each.itl_s < _LEAST_STEP_S:
            yield f"{place}.itl' is {_shown(each.itl_s)}: no worker decodes a token that fast."
        if each.ttft_s < each.itl_s:
            yield f"{place}.ttft' is below its 'itl': a first token takes longer than a later one."
    for one, other in permutations(spec.classes, 2):
        if one.weight > other.weight and one.ttft_s > other.ttft_s:
            yield (
                f"classes': '{one.name}' weighs more than '{other.name}' and may wait longer:"
                " one of both is the wrong way round."
            )


def _tenant_risks(spec: PolicySpec) -> Iterator[str]:
    without = [tenant.name for tenant in spec.tenants if tenant.share == 0]
    if without and len(without) == len(spec.tenants):
        yield "tenants': all shares are 0: they say nothing."
    elif without:
        yield f"tenants': {', '.join(without)} waits as long as anybody else does."


def _queue_risks(spec: PolicySpec) -> Iterator[str]:
    if spec.queue.order is Order.FIFO and len({each.ttft_s for each in spec.classes}) > 1:
        yield "queue.order' is 'fifo': the classes' targets order nothing."
    if spec.queue.stretch > _LONG_STRETCH:
        yield f"queue.stretch' is {spec.queue.stretch:g}: long prompts wait very long."


def _admission_risks(spec: PolicySpec) -> Iterator[str]:
    slack = spec.admission.slack
    if spec.admission.rejects_early and slack < 1:
        yield f"admission.slack' is {slack:g}: requests are refused that would meet their target."
    if spec.admission.rejects_early and slack > 1:
        yield f"admission.slack' is {slack:g}: in an overload all wait as long, and all are late."


def _session_risks(spec: PolicySpec) -> Iterator[str]:
    strictest_s = min(each.ttft_s for each in spec.classes)
    if spec.sessions and spec.sessions.max_penalty_s > strictest_s:
        yield (
            f"sessions.maxPenalty' is {_shown(spec.sessions.max_penalty_s)}, more than the"
            f" strictest target of TTFT, {_shown(strictest_s)}: staying alone may miss it."
        )


def _rule_risks(spec: PolicySpec) -> Iterator[str]:
    rule = spec.placement.rule
    if rule in _BLIND:
        yield f"placement.rule' is '{rule}', which does not look at what workers have cached."
    if rule == "longest_prefix":
        yield "placement.rule' is 'longest_prefix': what all share, one worker computes."


def _canary_risks(spec: PolicySpec) -> Iterator[str]:
    canary = spec.canary
    if canary is None:
        return
    if not canary.guards.is_any:
        yield "canary.guards' are none: whatever happens, this policy takes over."
    if canary.traffic_share > _MOST_CANARY:
        yield f"canary.traffic' is {100 * canary.traffic_share:g}%: most requests are the trial."
    yield from _guard_risks(canary)


def _guard_risks(canary: CanarySettings) -> Iterator[str]:
    guards = canary.guards
    for key, ratio in (
        ("maxTtftP95Ratio", guards.max_ttft_p95_ratio),
        ("maxErrorRatio", guards.max_error_ratio),
    ):
        if ratio is not None and ratio <= 1:
            yield f"canary.guards.{key}' is {ratio:g}: what is as good as before is rolled back."


_CHECKS: Final[tuple[Callable[[PolicySpec], Iterator[str]], ...]] = (
    _class_risks,
    _tenant_risks,
    _queue_risks,
    _admission_risks,
    _session_risks,
    _rule_risks,
    _canary_risks,
)


def _without_trials(spec: PolicySpec) -> dict[str, object]:
    return effective_spec(spec) | {"shadow": None, "canary": None}


def _shown(seconds: float) -> str:
    unit = unit_of("duration_s")
    return unit.show(seconds) if unit else str(seconds)
