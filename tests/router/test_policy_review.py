"""What is valid and probably not meant is said."""

import pytest

from router.policy_file.document import default_document
from router.policy_file.kind import POLICY
from router.policy_file.review import risks
from tests.router.broken_policies import spec

RISKY = {
    "an ITL that no worker reaches": (
        "{classes: [{name: a, ttft: 1s, itl: 100us}]}",
        "'spec.classes[0].itl' is 100us: no worker decodes a token that fast.",
    ),
    "a first token before its time": (
        "{classes: [{name: a, ttft: 10ms, itl: 50ms}], sessions: null}",
        "'spec.classes[0].ttft' is below its 'itl': a first token takes longer than a later one.",
    ),
    "a heavy class that may wait": (
        "{classes: [{name: a, ttft: 1s}, {name: b, ttft: 30s, weight: 9}]}",
        "'spec.classes': 'b' weighs more than 'a' and may wait longer: one of both is the wrong",
    ),
    "no shares": (
        "{tenants: [{name: a, share: 0}, {name: b, share: 0}]}",
        "'spec.tenants': all shares are 0: they say nothing.",
    ),
    "a tenant without share": (
        "{tenants: [{name: a, share: 0}, {name: b}]}",
        "'spec.tenants': a waits as long as anybody else does.",
    ),
    "targets that order nothing": (
        "{classes: [{name: a, ttft: 1s}, {name: b, ttft: 9s}], queue: {order: fifo}}",
        "'spec.queue.order' is 'fifo': the classes' targets order nothing.",
    ),
    "long prompts that wait for ever": (
        "{queue: {stretch: 100}}",
        "'spec.queue.stretch' is 100: long prompts wait very long.",
    ),
    "refusing who would be in time": (
        "{admission: {rejectsEarly: true, slack: 0.5}}",
        "'spec.admission.slack' is 0.5: requests are refused that would meet their target.",
    ),
    "taking on who will be late": (
        "{admission: {rejectsEarly: true, slack: 3}}",
        "'spec.admission.slack' is 3: in an overload all wait as long, and all are late.",
    ),
    "a session at any price": (
        "{sessions: {maxPenalty: 10s}}",
        "'spec.sessions.maxPenalty' is 10s, more than the strictest target of TTFT, 2s:",
    ),
    "a blind rule": (
        "{placement: {rule: round_robin}}",
        "'spec.placement.rule' is 'round_robin', which does not look at what workers have cached.",
    ),
    "a trap": (
        "{placement: {rule: longest_prefix}}",
        "'spec.placement.rule' is 'longest_prefix': what all share, one worker computes.",
    ),
    "a canary without guards": (
        "{canary: {guards: {maxTtftP95Ratio: null, maxErrorRatio: null}}}",
        "'spec.canary.guards' are none: whatever happens, this policy takes over.",
    ),
    "a canary that most see": (
        "{canary: {traffic: 80%}}",
        "'spec.canary.traffic' is 80%: most requests are the trial.",
    ),
    "a guard that wants a gain": (
        "{canary: {guards: {maxTtftP95Ratio: 0.9}}}",
        "'spec.canary.guards.maxTtftP95Ratio' is 0.9: what is as good as before is rolled back.",
    ),
    "a shadow of itself": (
        "{shadow: {spec: {}}}",
        "'spec.shadow' is the same policy: it compares nothing.",
    ),
    "a risk inside the shadow": (
        "{shadow: {spec: {placement: {rule: random}}}}",
        "'spec.shadow.spec.placement.rule' is 'random', which does not look",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), RISKY.values(), ids=RISKY)
def test_a_risk_is_named_with_its_place(text: str, sentence: str) -> None:
    [found] = risks(POLICY.parse(spec(text)))
    assert found.startswith(sentence)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "{tenants: [{name: a}]}",
        "{sessions: null}",
        "{canary: {}}",
        "{shadow: {spec: {placement: {rule: lmetric}}}}",
        "{classes: [{name: a, ttft: 1s, weight: 4}, {name: b, ttft: 30s}]}",
    ],
)
def test_what_is_meant_is_no_risk(text: str) -> None:
    assert risks(POLICY.parse(spec(text))) == []


def test_the_default_is_no_risk() -> None:
    assert risks(default_document()) == []
