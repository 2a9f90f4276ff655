"""Holds what an operator decides about placing requests, and what a policy remembers."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from typing import Any, NamedTuple

from cluster.errors import InvalidRequest
from cluster.types import RoutingHints
from router.policies.priced import Priced
from router.policies.rule import Rule
from router.policy_settings import (
    DEFAULT_CLASS,
    AdmissionRules,
    QueueOrder,
    ServiceClass,
    SessionAffinity,
    TenantShare,
)


class Disaggregate(StrEnum):
    AUTO = "auto"
    ALWAYS = "always"  # wherever a prefill worker serves
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Holds what an operator decides; the rest is measured."""

    name: str = "default"
    classes: tuple[ServiceClass, ...] = (DEFAULT_CLASS,)  # the first: of requests that name none
    tenants: tuple[TenantShare, ...] = ()
    rule: Rule[Any] = field(default_factory=Priced)
    disaggregate: Disaggregate = Disaggregate.AUTO
    queue: QueueOrder = field(default_factory=QueueOrder)
    admission: AdmissionRules = field(default_factory=AdmissionRules)
    sessions: SessionAffinity | None = field(default_factory=SessionAffinity)
    speculates: bool = True  # what was placed counts as cached, before it is computed

    def service_class(self, name: str) -> ServiceClass | None:
        """None: there is no such class."""
        if not name:
            return self.classes[0]
        return next((each for each in self.classes if each.name == name), None)

    def begin(self, seed: int) -> "PolicyState":
        return PolicyState(rule=self.rule.begin(seed), random=seed)


class PolicyState(NamedTuple):
    """Holds what a policy remembers from request to request."""

    rule: Any
    random: int


def targets_of(hints: RoutingHints, policy: Policy) -> ServiceClass:
    """Says which targets and which weight count for a request: its class's, narrowed by its
    budgets. Raises InvalidRequest for a class that the policy does not know."""
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
