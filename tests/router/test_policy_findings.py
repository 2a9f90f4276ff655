"""What `penstock policy check` finds: all of it at once, each with its line."""

import pytest

from penstock.cli.findings import MAX_FINDINGS, Review, review
from router.policy_file.document import PolicyDocument
from router.policy_file.kind import POLICY
from tests.router.broken_policies import BROKEN, ENVELOPE, Broken, spec

MANY = """apiVersion: penstock/v1
kind: RoutingPolicy
metadata: {name: Bad Name}
spec:
  classes:
    - {name: a, ttft: 0s,
       weight: -1}
    - {ttft: 1s}
    - name: b
      itl: fast
  defaultClass: zz
  admission:
    rejectsEarly: yes please
    slack: 0
    maxQueued: 0
  placement:
    rule: lmetric
    parameters:
      mayFetch: true
  canary:
    traffic: 500%
    minRequests: 0
  shadow: {sample: 10%}
  frobnicate: 3
"""
RISKY = ENVELOPE + "spec:\n  queue: {stretch: 90}\n  placement:\n    rule: random\n"


def told(found: Review[PolicyDocument]) -> list[str]:
    return [f"{each.line}: {each.sentence}" for each in found.findings]


def test_everything_is_told_at_once_in_the_order_of_the_lines() -> None:
    expected = [
        "3: 'metadata': 'Bad Name' is no name of a policy",
        "6: 'spec.classes[0]': the target of TTFT is 0 s",
        "7: 'spec.classes[0]': the weight is -1",
        "8: 'spec.classes[1].name' is missing",
        "10: 'spec.classes[2].itl' is 'fast'",
        "11: 'spec': the default class 'zz' is none of the classes",
        "13: 'spec.admission.rejectsEarly' is \"yes please\"",
        "14: 'spec.admission': 'slack' is 0",
        "15: 'spec.admission': the longest queue is 0",
        "19: 'spec.placement': in the parameters of rule 'lmetric': 'mayFetch' is an unknown key",
        "21: 'spec.canary': the canary's traffic is 500 %",
        "22: 'spec.canary': the number of requests is 0",
        "23: 'spec.shadow.spec' is missing",
        "24: 'frobnicate' in 'spec' is an unknown key",
    ]
    found = told(review(POLICY, MANY, "it"))
    assert len(found) == len(expected)
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(beginning)


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_policy_is_found_wrong_by_itself_alone(broken: Broken) -> None:
    found = review(POLICY, broken.text, "it")
    assert found.document is None
    assert any(broken.sentence in each.sentence for each in found.findings)
    assert len(found.findings) <= 2


def test_a_risk_has_its_line() -> None:
    found = review(POLICY, RISKY, "it")
    assert found.document is not None
    assert [line.split("'")[:2] for line in told(found)] == [
        ["5: ", "spec.queue.stretch"],
        ["7: ", "spec.placement.rule"],
    ]


def test_a_fault_of_yaml_has_its_line() -> None:
    [found] = review(POLICY, ENVELOPE + "spec: {\n", "it").findings
    assert found.line == 5


@pytest.mark.parametrize(
    "text",
    [
        spec("{tenants: [" + "{name: A, share: -1}," * 200 + "]}"),
        spec("{" + ",".join(f"k{i}: 1" for i in range(1000)) + "}"),
    ],
)
@pytest.mark.slow
def test_the_findings_end_where_they_are_too_many(text: str) -> None:
    found = review(POLICY, text, "it").findings
    assert len(found) == MAX_FINDINGS + 1
    assert found[-1].sentence == "There may be more: mend these first."
