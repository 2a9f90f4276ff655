"""Holds what an operator decides besides the placement rule: service classes with their targets,
tenants' shares, the order of queues, admission, sessions, and how a policy is tried out. Values
that the router reads; they know no file format.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cluster.bounds import check_above, check_between, check_name
from cluster.document.keys import meaning

MAX_CLASSES: Final = 16  # each is a label of metrics and a row of every report
MAX_TENANTS: Final = 1024
DEFAULT_TENANT: Final = "default"  # of all callers, until there are keys


class Quantile(StrEnum):
    """Names a quantile of how far predictions were off lately."""

    P50 = "p50"
    P90 = "p90"
    P99 = "p99"


class Order(StrEnum):
    FIFO = "fifo"
    DEADLINE = "deadline"  # whose first token is due first


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceClass:
    """What requests of one kind are promised."""

    name: str = field(metadata=meaning("requests name it as their service_class"))
    ttft_s: float = field(default=2.0, metadata=meaning("target: from arrival to the first token"))
    itl_s: float = field(default=0.2, metadata=meaning("target: between two tokens"))
    weight: float = field(
        default=1.0, metadata=meaning("how many times a second of its waiting counts")
    )
    patience_s: float = field(
        default=30.0,
        metadata=meaning("how long it waits at most for a decode worker that is expected back"),
    )

    def __post_init__(self) -> None:
        check_name(self.name, "class")
        check_above("the target of TTFT", self.ttft_s, "s", least=0.0, most=86_400.0)
        check_above("the target of ITL", self.itl_s, "s", least=0.0, most=3_600.0)
        check_above("the weight", self.weight, least=0.0, most=1e6)
        check_between("the patience", self.patience_s, "s", least=0.0, most=86_400.0)


DEFAULT_CLASS: Final = ServiceClass(name="default")


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantShare:
    """A tenant's part of the workers' time while they are short: share / sum of shares."""

    name: str = field(metadata=meaning("as which its callers authenticate"))
    share: float = field(
        default=1.0,
        metadata=meaning("its part of the workers' time: this / the sum of all; 0: the rest"),
    )

    def __post_init__(self) -> None:
        check_name(self.name, "tenant")
        check_between("the share", self.share, least=0.0, most=1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOrder:
    """Who is computed first at a worker; a request's priority goes before it."""

    order: Order = field(
        default=Order.DEADLINE,
        metadata=meaning("deadline: whose first token is due first; fifo: who came first"),
    )
    # Short prompts pass long ones, and nobody waits for more than what has been promised.
    stretch: float = field(
        default=1.0,
        metadata=meaning("a prompt is due after the target of TTFT + this x its own seconds"),
    )

    def __post_init__(self) -> None:
        check_between("'stretch'", self.stretch, least=0.0, most=1000.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionRules:
    """Which requests are refused before they cost anything."""

    rejects_early: bool = field(
        default=False,
        metadata=meaning("refuse requests whose predicted TTFT or ITL exceeds slack x the target"),
    )
    slack: float = field(
        default=1.0, metadata=meaning("times the target; with more, all are late in an overload")
    )
    quantile: Quantile = field(
        default=Quantile.P90,
        metadata=meaning("of the prediction: p50, p90 or p99; a higher one refuses more"),
    )
    max_queued: int = field(
        default=4096,
        metadata=meaning("prompts that wait at all workers together; more are refused"),
    )

    def __post_init__(self) -> None:
        check_above("'slack'", self.slack, least=0.0, most=1000.0)
        check_between("the longest queue", self.max_queued, least=1, most=10_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAffinity:
    """Requests with one session key stay with their worker while that costs little."""

    ttl_s: float = field(
        default=600.0, metadata=meaning("how long a session is remembered after its last request")
    )
    max_penalty_s: float = field(
        default=0.5,
        metadata=meaning("how much dearer than the best its worker may be; 0s: not at all"),
    )
    max_sessions: int = field(
        default=100_000, metadata=meaning("remembered at most; the least recently used goes first")
    )

    def __post_init__(self) -> None:
        check_above("a session's time to live", self.ttl_s, "s", least=0.0, most=86_400.0)
        check_between("a session's penalty", self.max_penalty_s, "s", least=0.0, most=3_600.0)
        check_between("the number of sessions", self.max_sessions, least=1, most=10_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowSettings:
    """A second policy that decides beside the first, and changes nothing."""

    sample_share: float = field(
        default=0.1, metadata=meaning("the requests on which it decides, too")
    )

    def __post_init__(self) -> None:
        check_above("the sample", 100 * self.sample_share, "%", least=0.0, most=100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """What ends a canary: its own figures over those of the policy before, over the same time."""

    max_ttft_p95_ratio: float | None = field(
        default=None, metadata=meaning("its 95th percentile of TTFT / that of the policy before")
    )
    max_error_ratio: float | None = field(
        default=None, metadata=meaning("its share of failed requests / that of the policy before")
    )

    def __post_init__(self) -> None:
        for what, ratio in (("TTFT", self.max_ttft_p95_ratio), ("errors", self.max_error_ratio)):
            if ratio is not None:
                check_above(f"the guard's ratio of {what}", ratio, least=0.0, most=1000.0)

    @property
    def is_any(self) -> bool:
        return self.max_ttft_p95_ratio is not None or self.max_error_ratio is not None


DEFAULT_GUARDS: Final = Guards(max_ttft_p95_ratio=1.2, max_error_ratio=1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class CanarySettings:
    """How a policy takes over: a part of the requests first, all of them unless a guard ends it."""

    traffic_share: float = field(
        default=0.05, metadata=meaning("the requests that it places while on trial")
    )
    duration_s: float = field(default=600.0, metadata=meaning("of the trial; then it takes over"))
    min_requests: int = field(
        default=200, metadata=meaning("placed by it before a guard may judge")
    )
    guards: Guards = field(
        default=DEFAULT_GUARDS, metadata=meaning("what ends the trial: the policy before stays")
    )

    def __post_init__(self) -> None:
        check_above("the canary's traffic", 100 * self.traffic_share, "%", least=0.0, most=100.0)
        check_above("the canary's duration", self.duration_s, "s", least=0.0, most=604_800.0)
        check_between("the number of requests", self.min_requests, least=1, most=10_000_000)
