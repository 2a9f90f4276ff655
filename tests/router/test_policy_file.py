"""A policy file means what it says, or nothing at all."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.document.keys import keys_of, yaml_text
from cluster.document.units import UNITS, Unit, unit_of
from cluster.errors import ConfigError
from cluster.strict_yaml import parse_yaml
from router.policies.lmetric import LMetric
from router.policies.priced import Priced
from router.policies.registry import RULES
from router.policy import Disaggregate
from router.policy_file.document import (
    PlacementSpec,
    PolicyDocument,
    PolicySpec,
    default_document,
    effective,
)
from router.policy_file.kind import POLICY
from router.policy_settings import (
    AdmissionRules,
    CanarySettings,
    Guards,
    Order,
    Quantile,
    QueueOrder,
    ServiceClass,
    SessionAffinity,
    ShadowSettings,
)
from tests.documents import put_scrap
from tests.router.broken_policies import (
    BROKEN,
    ENVELOPE,
    MISSHAPEN,
    SENSELESS,
    UNREADABLE,
    Broken,
    placement,
    spec,
)
from tests.router.policy_texts import EVERYTHING

SECTIONS = (PolicyDocument, PolicySpec, PlacementSpec, ServiceClass, AdmissionRules, CanarySettings)


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_policy_never_takes_effect(broken: Broken) -> None:
    with pytest.raises(ConfigError) as caught:
        POLICY.parse(broken.text, "policy.yaml")
    assert broken.sentence in caught.value.message
    assert "policy.yaml" in caught.value.message


def test_there_are_a_hundred_of_them() -> None:
    assert len(BROKEN) == len(UNREADABLE) + len(MISSHAPEN) + len(SENSELESS)
    assert len(BROKEN) >= 100


def test_what_is_left_out_has_its_default() -> None:
    document = POLICY.parse(spec("{}").replace("broken", "default"))
    assert document == default_document()
    assert document.policy() == default_document().policy()


def test_a_policy_means_what_it_says() -> None:
    document = POLICY.parse(EVERYTHING)
    policy = document.policy()
    assert [(each.name, each.ttft_s, each.itl_s, each.weight) for each in policy.classes] == [
        ("batch", 60.0, 0.5, 1.0),  # the default one comes first
        ("interactive", 0.75, 0.05, 4.0),
    ]
    assert [(tenant.name, tenant.share) for tenant in policy.tenants] == [("a", 3.0), ("b", 1.0)]
    assert policy.queue == QueueOrder(order=Order.FIFO, stretch=0.5)
    assert policy.admission == AdmissionRules(
        rejects_early=True, slack=1.5, quantile=Quantile.P99, max_queued=100
    )
    assert policy.sessions == SessionAffinity(ttl_s=3600.0, max_penalty_s=0.25, max_sessions=10)
    assert policy.rule == Priced(may_fetch=False)
    assert policy.disaggregate is Disaggregate.NEVER
    shadow = document.spec.shadow
    assert shadow
    assert shadow.settings() == ShadowSettings(sample_share=0.125)
    shadow_policy = document.shadow_policy()
    assert shadow_policy
    assert shadow_policy.rule == LMetric()
    assert document.spec.canary == CanarySettings(
        traffic_share=0.1,
        duration_s=90.0,
        min_requests=50,
        guards=Guards(max_ttft_p95_ratio=1.1, max_error_ratio=None),
    )


def test_sessions_can_be_off() -> None:
    assert POLICY.parse(spec("{sessions: null}")).policy().sessions is None


@pytest.mark.parametrize("text", [EVERYTHING, spec("{}"), spec("{sessions: null}")])
def test_what_is_shown_is_the_same_policy(text: str) -> None:
    document = POLICY.parse(text)
    again = POLICY.parse(yaml_text(effective(document)))
    assert effective(again) == effective(document)
    assert again.policy() == document.policy()
    assert again.digest == document.digest


def test_the_digest_tells_policies_apart_not_their_spelling() -> None:
    plain, told, other = (
        POLICY.parse(spec(text)).digest
        for text in ("{}", "{queue: {order: deadline}}", "{queue: {order: fifo}}")
    )
    assert plain == told != other


@pytest.mark.parametrize("name", RULES)
def test_every_rule_can_be_named(name: str) -> None:
    document = POLICY.parse(placement(f"{{rule: {name}}}"))
    assert type(document.policy().rule) is RULES[name]
    assert POLICY.parse(yaml_text(effective(document))).policy() == document.policy()


def test_two_keys_of_a_section_are_never_spelt_alike() -> None:
    for section in (*SECTIONS, *RULES.values()):
        names = [key.name for key in keys_of(section)]
        assert len(set(names)) == len(names)


def test_a_file_is_read_and_named(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    with pytest.raises(ConfigError, match=r"policy\.yaml' cannot be read"):
        POLICY.load(path)
    path.write_text(spec("{}"))
    assert POLICY.load(path).metadata.name == "broken"


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda t: ENVELOPE + t))
def test_any_text_is_a_policy_or_is_refused(content: bytes | str) -> None:
    with contextlib.suppress(ConfigError):
        assert POLICY.parse(content).policy()


@given(value=st.floats(min_value=0, max_value=1e15), unit=st.sampled_from(UNITS))
def test_a_quantity_is_shown_as_it_is_read(value: float, unit: Unit) -> None:
    assume(value == 0 or value > 1e-20)
    assert unit.parse(unit.show(value)) == value


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("ttl_s", 0.75, "750ms"),
        ("ttl_s", 2.0, "2s"),
        ("ttl_s", 90.0, "90s"),
        ("ttl_s", 600.0, "10m"),
        ("ttl_s", 0.0, "0s"),
        ("ttl_s", 7e-6, "7us"),
        ("kv_bytes", 8 << 30, "8GiB"),
        ("kv_bytes", 10e9, "10GB"),
        ("link_bytes_per_s", 12.5e9, "12500MB/s"),
        ("traffic_share", 0.05, "5%"),
    ],
)
def test_quantities_are_shown_as_people_write_them(field: str, value: float, text: str) -> None:
    unit = unit_of(field)
    assert unit
    assert unit.show(value) == text


@pytest.mark.parametrize(
    "text",
    [
        spec("{" + ",".join(f"k{i}: 1" for i in range(1000)) + "}"),
        spec("{classes: [" + "{ttft: 1}," * 1000 + "]}"),
        spec("{defaultClass: " + "x" * 50_000 + "}"),
        placement("{rule: " + "x" * 50_000 + "}"),
        placement("{disaggregate: " + "x" * 50_000 + "}"),
    ],
    ids=["keys", "durations", "class", "rule", "choice"],
)
def test_a_refusal_is_short_whatever_was_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        POLICY.parse(text)
    assert len(caught.value.message) < 2000


@pytest.mark.slow
@given(data=st.data())
def test_a_policy_with_anything_anywhere_is_valid_or_refused(data: st.DataObject) -> None:
    """What is taken can be shown, is taken again, and makes a policy."""
    mapping = parse_yaml(EVERYTHING, source="it")
    put_scrap(data, mapping["spec"], ("5",))
    with contextlib.suppress(ConfigError):
        document = POLICY.document_of(mapping, "it")
        assert POLICY.parse(yaml_text(effective(document))).policy() == document.policy()
