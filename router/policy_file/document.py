"""A routing policy as a document: what operators write, check, compare and apply."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from cluster.bounds import check_name
from cluster.document.keys import meaning, to_file
from cluster.document.kind import API_VERSION, digest_of
from cluster.errors import ConfigError
from router.policies.registry import DEFAULT, make_rule
from router.policies.rule import Rule
from router.policy import Disaggregate, Policy
from router.policy_settings import (
    DEFAULT_CLASS,
    MAX_CLASSES,
    MAX_TENANTS,
    AdmissionRules,
    CanarySettings,
    QueueOrder,
    ServiceClass,
    SessionAffinity,
    ShadowSettings,
    TenantShare,
)

MAX_POLICY_BYTES: Final = 64 << 10  # read in under a second, whatever they are
KIND: Final = "RoutingPolicy"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSpec:
    """How a worker is chosen."""

    rule: str = field(
        default=DEFAULT, metadata=meaning("what decides which worker computes the prompt")
    )
    parameters: Mapping[str, Any] = field(
        default_factory=dict, metadata=meaning("penstock policy list names them")
    )
    disaggregate: Disaggregate = field(
        default=Disaggregate.AUTO,
        metadata=meaning("whether a prefill worker computes the prompt; auto: by price"),
    )
    speculates: bool = field(
        default=True, metadata=meaning("what was placed counts as cached, before it is computed")
    )

    def __post_init__(self) -> None:
        try:
            self.make_rule()
        except ConfigError as error:
            raise ValueError(error.message[:1].lower() + error.message[1:]) from error

    def make_rule(self) -> Rule[Any]:
        return make_rule(self.rule, self.parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    """All that a policy says. Targets first: the rest serves them."""

    classes: tuple[ServiceClass, ...] = field(
        default=(DEFAULT_CLASS,), metadata=meaning("what is promised")
    )
    default_class: str | None = field(
        default=None, metadata=meaning("of requests that name none; null: the first one")
    )
    tenants: tuple[TenantShare, ...] = field(
        default=(), metadata=meaning("who gets how much while workers are short; not listed: 1")
    )
    queue: QueueOrder = field(default_factory=QueueOrder, metadata=meaning("who is computed first"))
    admission: AdmissionRules = field(
        default_factory=AdmissionRules, metadata=meaning("who is refused before costing anything")
    )
    sessions: SessionAffinity | None = field(
        default_factory=SessionAffinity,
        metadata=meaning("who stays with a worker; null: session keys mean nothing"),
    )
    placement: PlacementSpec = field(
        default_factory=PlacementSpec, metadata=meaning("how a worker is chosen")
    )
    shadow: "ShadowSpec | None" = field(
        default=None, metadata=meaning("a second policy that changes nothing")
    )
    canary: CanarySettings | None = field(
        default=None, metadata=meaning("how this policy takes over; null: at once")
    )

    def __post_init__(self) -> None:
        names = _distinct("class", [each.name for each in self.classes], MAX_CLASSES)
        _distinct("tenant", [each.name for each in self.tenants], MAX_TENANTS)
        if not names:
            raise ValueError("there is no class: give one, or leave 'classes' out.")
        if self.default_class is not None and self.default_class not in names:
            raise ValueError(
                f"the default class '{self.default_class[:80]}' is none of the classes:"
                f" choose from {', '.join(names)}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowSpec:
    """A second policy, that decides beside the first one and changes nothing."""

    sample_share: float = field(
        default=ShadowSettings().sample_share,
        metadata=meaning("the requests on which it decides, too"),
    )
    spec: PolicySpec = field(metadata=meaning("a whole spec, without shadow and canary"))

    def __post_init__(self) -> None:
        self.settings()
        if self.spec.shadow or self.spec.canary:
            raise ValueError("a shadow has no shadow and no canary of its own: leave them out.")

    def settings(self) -> ShadowSettings:
        return ShadowSettings(sample_share=self.sample_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """Which policy this is."""

    name: str = field(metadata=meaning("what logs, reports and metrics call it"))

    def __post_init__(self) -> None:
        check_name(self.name, "policy")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDocument:
    """A valid policy. Two documents that mean the same have the same digest."""

    api_version: Literal["penstock/v1"] = API_VERSION
    kind: Literal["RoutingPolicy"] = KIND
    metadata: Metadata
    spec: PolicySpec

    @property
    def digest(self) -> str:
        return digest_of(effective(self)["spec"])

    def policy(self) -> Policy:
        """Makes the policy that places requests."""
        return _policy(self.metadata.name, self.spec)

    def shadow_policy(self) -> Policy | None:
        """Makes the policy beside it, if one decides; `spec.shadow.settings()` says how often."""
        shadow = self.spec.shadow
        return _policy(f"{self.metadata.name}-shadow", shadow.spec) if shadow else None


def default_document() -> PolicyDocument:
    """Gives what is in force where no policy was given."""
    return PolicyDocument(metadata=Metadata(name="default"), spec=PolicySpec())


def effective(document: PolicyDocument) -> dict[str, Any]:
    """The whole document as a file would say it, every default told."""
    shown: dict[str, Any] = to_file(document)
    shown["spec"] = effective_spec(document.spec)
    return shown


def _policy(name: str, spec: PolicySpec) -> Policy:
    default = spec.default_class or spec.classes[0].name
    return Policy(
        name=name,
        # The first is that of requests that name none.
        classes=tuple(sorted(spec.classes, key=lambda each: each.name != default)),
        tenants=spec.tenants,
        rule=spec.placement.make_rule(),
        disaggregate=spec.placement.disaggregate,
        speculates=spec.placement.speculates,
        queue=spec.queue,
        admission=spec.admission,
        sessions=spec.sessions,
    )


def effective_spec(spec: PolicySpec) -> dict[str, Any]:
    shown: dict[str, Any] = to_file(spec)
    shown["defaultClass"] = spec.default_class or spec.classes[0].name
    shown["placement"]["parameters"] = to_file(spec.placement.make_rule())
    if spec.shadow:
        shown["shadow"]["spec"] = effective_spec(spec.shadow.spec)
    return shown


def _distinct(what: str, names: Sequence[str], most: int) -> Sequence[str]:
    twice = [name for name in names if names.count(name) > 1] if len(names) <= most else []
    if twice:
        raise ValueError(f"the {what} '{twice[0]}' is given twice: leave one of them out.")
    if len(names) > most:
        raise ValueError(f"{len(names)} are given for each {what}: give at most {most}.")
    return names
