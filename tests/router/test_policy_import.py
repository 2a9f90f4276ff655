"""Configurations of other routers become policies; what is lost on the way is said."""

import pytest

from cluster.document.keys import yaml_text
from cluster.errors import ConfigError
from router.policies.least_work import LeastWork
from router.policies.llmd_profile import LlmdProfile
from router.policies.power_of_two import PowerOfTwo
from router.policies.priced import Priced
from router.policies.round_robin import RoundRobin
from router.policies.rule import Rule
from router.policies.sglang_cache_aware import SglangCacheAware
from router.policy import Disaggregate
from router.policy_file.document import effective
from router.policy_file.imported import Imported
from router.policy_file.kind import POLICY
from router.policy_file.llmd import import_llmd
from router.policy_file.review import risks
from router.policy_file.sglang import import_sglang

SPLIT = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
  - type: token-producer
  - {type: approx-prefix-cache-producer, parameters: {maxPrefixTokensToMatch: 65536}}
  - {type: prefix-based-pd-decider, name: split, parameters: {nonCachedTokens: 512}}
  - {type: disagg-profile-handler, parameters: {deciders: {prefill: split}}}
  - type: prefill-filter
  - type: decode-filter
  - {type: prefix-cache-scorer, name: prefix}
  - type: queue-scorer
  - type: session-affinity-scorer
  - {type: load-aware-scorer, parameters: {threshold: 64}}
  - {type: utilization-filter, parameters: {conditions: [{metric: waiting-queue, maxValue: 12}]}}
  - type: weighted-random-picker
schedulingProfiles:
  - name: decode
    plugins: [{pluginRef: decode-filter}, {pluginRef: queue-scorer}]
  - name: prefill
    plugins:
      - pluginRef: prefill-filter
      - {pluginRef: prefix, weight: 3}
      - pluginRef: queue-scorer
      - {pluginRef: load-aware-scorer, weight: 0.5}
      - pluginRef: session-affinity-scorer
      - pluginRef: utilization-filter
      - pluginRef: weighted-random-picker
flowControl: {maxRequests: 900, defaultRequestTTL: 30s}
"""


def llmd(plugins: str, profile: str) -> str:
    return (
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        f"plugins: [{plugins}]\nschedulingProfiles: [{{name: default, plugins: [{profile}]}}]\n"
    )


def test_the_profile_that_places_the_prompt_becomes_the_rule() -> None:
    imported = import_llmd(SPLIT, "epp.yaml")
    policy = imported.document.policy()
    assert policy.rule == LlmdProfile(
        weights={"prefix-cache-scorer": 3.0, "queue-scorer": 1.0, "load-aware-scorer": 0.5},
        picker="weighted-random-picker",
        max_waiting=12,
        max_prefix_tokens=65536,
    )
    assert policy.disaggregate is Disaggregate.AUTO
    assert policy.admission.max_queued == 900
    told = " ".join(imported.notes)
    for lost in (
        "'nonCachedTokens: 512'",
        "'session-affinity-scorer': requests with one 'session_key' stay together",
        "'load-aware-scorer': its parameters (threshold)",
        "profile 'decode'",
        "token-producer, approx-prefix-cache-producer",
        "defaultRequestTTL",
        "featureGates",
    ):
        assert lost in told


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        ("", Disaggregate.AUTO),
        ("{type: disagg-profile-handler}", Disaggregate.NEVER),
        (
            "{type: prefix-based-pd-decider}, {type: disagg-profile-handler, parameters:"
            " {deciders: {prefill: prefix-based-pd-decider}}}",
            Disaggregate.NEVER,
        ),
        (
            "{type: always-disagg-pd-decider}, {type: disagg-profile-handler, parameters:"
            " {deciders: {prefill: always-disagg-pd-decider}}}",
            Disaggregate.ALWAYS,
        ),
        ("{type: pd-profile-handler, parameters: {threshold: 0}}", Disaggregate.ALWAYS),
        ("{type: pd-profile-handler, parameters: {threshold: 100}}", Disaggregate.AUTO),
    ],
)
def test_the_decider_says_whether_prompts_go_elsewhere(
    handler: str, expected: Disaggregate
) -> None:
    text = llmd(
        ", ".join(filter(None, (handler, "{type: queue-scorer}"))), "pluginRef: queue-scorer"
    )
    assert import_llmd(text, "epp.yaml").document.policy().disaggregate is expected


def test_older_names_are_known() -> None:
    text = llmd("{type: precise-prefix-cache-scorer}", "pluginRef: precise-prefix-cache-scorer")
    rule = import_llmd(text, "epp.yaml").document.policy().rule
    assert rule == LlmdProfile(weights={"prefix-cache-scorer": 1.0})


def test_without_a_known_scorer_the_built_in_profile_stands() -> None:
    text = llmd("{type: lora-affinity-scorer}", "pluginRef: lora-affinity-scorer")
    imported = import_llmd(text, "epp.yaml")
    assert imported.document.policy().rule == LlmdProfile()
    assert "'lora-affinity-scorer': there is nothing like it." in imported.notes
    assert any("no scorer could be carried over" in note for note in imported.notes)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kind: Pod", "give one of 'kind: EndpointPickerConfig'"),
        ("- a", "give one of 'kind: EndpointPickerConfig'"),
        (
            llmd("{type: queue-scorer}", "pluginRef: queue"),
            "'pluginRef: queue' is none of the plugins: queue-scorer.",
        ),
        (llmd("{typ: x}", ""), "'typ' in 'plugins[0]' is an unknown key: did you mean 'type'?"),
        (
            llmd("{type: queue-scorer}", "{pluginRef: queue-scorer, weight: -1}"),
            "the weight of 'queue-scorer' is -1",
        ),
        (
            "apiVersion: x\nkind: EndpointPickerConfig\nplugins: []\nschedulingProfiles: []",
            "'schedulingProfiles' is empty",
        ),
    ],
)
def test_a_wrong_configuration_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        import_llmd(text, "epp.yaml")
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ("--host x", SglangCacheAware()),
        (
            "--policy cache_aware --balance-abs-threshold 32 --balance-rel-threshold=1.1",
            SglangCacheAware(balance_abs_threshold=32, balance_rel_threshold=1.1),
        ),
        (
            "--worker-overload-waiting-requests 8 --worker-overload-token-usage 0.9",
            SglangCacheAware(overload_waiting=8, overload_kv_usage=0.9),
        ),
        ("--router-policy round_robin --balance-abs-threshold 32", RoundRobin()),
        ("--policy random --prefill-policy power_of_two", PowerOfTwo()),
        ("--policy least_load", LeastWork()),
        ("--policy consistent_hashing", Priced()),
        ("--policy random --policy round_robin", RoundRobin()),
    ],
)
def test_flags_name_the_rule(flags: str, rule: Rule[int]) -> None:
    assert import_sglang(flags, "run.sh").document.policy().rule == rule


def test_a_start_script_can_be_imported() -> None:
    imported = import_sglang(
        """# production
        exec python -m sglang_router.launch_router --pd-disaggregation \\
            --prefill http://p0:30000 8998 --decode http://d0:30000 \\
            --cache-threshold 0.5 --queue-size 50 --api-key hush
        """,
        "run.sh",
    )
    policy = imported.document.policy()
    assert policy.disaggregate is Disaggregate.ALWAYS
    assert policy.admission.max_queued == 50
    assert imported.notes == (
        "'--cache-threshold': matches are exact, and one of any length counts.",
        "no part of a routing policy: --prefill, --decode, --api-key.",
    )


def test_what_has_no_counterpart_is_told() -> None:
    notes = import_sglang("--policy bucket --retry-max-retries 9 --queue-size 5", "flags").notes
    assert "there is no rule 'bucket' here: the default, 'priced', stands in its place." in notes
    assert "'--retry-max-retries': retries are the router's and the client's own." in notes
    assert not any("queue-size" in note for note in notes)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("", "there is no flag"),
        ("cache_aware", "there is no flag"),
        ("--policy 'cache", "these are no flags: No closing quotation"),
        ("--balance-abs-threshold $ABS", "'--balance-abs-threshold $ABS': give a number."),
        ("--queue-size many", "'--queue-size many': give a number."),
        ("--balance-rel-threshold 0.1", "the relative threshold is 0.1: give one from 1"),
        ("--queue-size -1", "the longest queue is -1"),
    ],
)
def test_wrong_flags_are_refused(flags: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        import_sglang(flags, "run.sh")
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    "imported", [import_llmd(SPLIT, "epp.yaml"), import_sglang("--policy cache_aware", "flags")]
)
def test_what_is_imported_is_a_valid_policy(imported: Imported) -> None:
    document = imported.document
    assert POLICY.parse(yaml_text(effective(document))).policy() == document.policy()
    assert risks(document) == []
