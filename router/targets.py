"""Which targets and which weight count for a request: its class's, narrowed by its budgets."""

from dataclasses import replace
from math import inf

from cluster.errors import InvalidRequest
from cluster.types import RoutingHints
from router.policy import Policy
from router.policy_settings import ServiceClass


def targets_of(hints: RoutingHints, policy: Policy) -> ServiceClass:
    """Raises InvalidRequest for a class that the policy does not know."""
    service = policy.service_class(hints.service_class)
    if service is None:
        names = ", ".join(f"'{each.name}'" for each in policy.classes)
        raise InvalidRequest(
            "service_class",
            f"There is no class '{hints.service_class}': choose from {names}, or leave it out.",
        )
    if hints.ttft_budget_s is None and hints.itl_budget_s is None:
        return service
    return replace(
        service,
        ttft_s=min(service.ttft_s, _given(hints.ttft_budget_s)),
        itl_s=min(service.itl_s, _given(hints.itl_budget_s)),
    )


def _given(budget_s: float | None) -> float:
    return inf if budget_s is None else budget_s
