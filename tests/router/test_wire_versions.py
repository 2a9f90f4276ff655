"""While a cluster is upgraded its workers speak two wire versions: all serve, and no placement has
KV move from one version to the other."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from cluster.types import Incarnation, LinkCost, LoadReport, Member, Role, WorkerId
from cluster.wire_version import WIRE_VERSION
from router.decision import Attempt, Decision, PlacementRequest, place
from router.explain import explain
from router.policies.priced import Priced
from router.policies.registry import RULES
from router.policy import Disaggregate, Policy
from router.pool import Pool, PoolSnapshot
from tests.router.pool_samples import FINGERPRINT, for_pool, member

OLD, NEW = WIRE_VERSION - 1, WIRE_VERSION
LIFE = Incarnation("1")
REPORT = LoadReport(num_free_blocks=6000, num_blocks=6000)
BUSY = replace(REPORT, backlog=((0.0, 9.0),), num_running=9, num_waiting=9)


def spoken(name: str, role: Role, version: int) -> Member:
    made = member(name, role)
    fingerprint = replace(FINGERPRINT, wire_version=version)
    return replace(made, worker=replace(made.worker, fingerprint=fingerprint))


def pool_of(prefill: dict[str, int], decode: dict[str, int], **reports: LoadReport) -> Pool:
    """Workers by name, each with its wire version."""
    pool = Pool()
    for role, workers in ((Role.PREFILL, prefill), (Role.DECODE, decode)):
        for name, version in workers.items():
            pool.join(spoken(name, role, version))
            pool.report(WorkerId(name), LIFE, reports.get(name, REPORT), 10.0)
    return pool


def snapshot(*args: Any, **reports: LoadReport) -> PoolSnapshot:
    return pool_of(*args, **reports).snapshot(10.0)


def decide(pool: PoolSnapshot, policy: Policy, seed: int = 0, **changes: Any) -> Decision:
    changes = {"max_tokens": 8, "grain_tokens": 1, **changes}
    asked = for_pool(PlacementRequest(num_prompt_tokens=4000, **changes), pool)
    decision, _ = place(asked, pool, policy.begin(seed), policy)
    assert decision is not None
    return decision


MIXED = ({"p": OLD, "q": NEW}, {"a": OLD, "b": NEW})
VERSIONS = {"p": OLD, "q": NEW, "a": OLD, "b": NEW}
HOLDINGS = [{}, *({"num_ready": {WorkerId(name): 3900}} for name in "pb")]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("mode", Disaggregate)
@pytest.mark.parametrize("busy", [{}, {"q": BUSY, "a": BUSY}])
def test_no_placement_joins_two_versions(
    name: str, mode: Disaggregate, busy: dict[str, LoadReport]
) -> None:
    policy = Policy(rule=RULES[name](), disaggregate=mode)
    pools = [snapshot(*MIXED, **busy), snapshot({"p": OLD}, MIXED[1], **busy)]
    excluded = [frozenset[WorkerId](), frozenset({WorkerId("a")}), frozenset({WorkerId("p")})]
    for pool, held, without in product(pools, HOLDINGS, excluded):
        placement = decide(pool, policy, excluded=without, **held).placement
        assert placement.decode not in without
        placed = {placement.decode, placement.prefill, placement.source} - {None}
        assert len({VERSIONS[str(worker)] for worker in placed}) == 1, placement


def test_workers_of_both_versions_are_used_and_hand_over_within_theirs() -> None:
    always, pool = Policy(disaggregate=Disaggregate.ALWAYS), snapshot(*MIXED)
    drawn = {decide(pool, always, seed).placement for seed in range(20)}
    assert {(each.prefill, each.decode) for each in drawn} == {("p", "a"), ("q", "b")}


@pytest.mark.parametrize("rule", ["priced", "round_robin"])
def test_always_is_to_compute_itself_for_whom_no_prefill_worker_understands(rule: str) -> None:
    always = Policy(rule=RULES[rule](), disaggregate=Disaggregate.ALWAYS)
    pool = snapshot({"q": NEW}, {"a": OLD})
    placement = decide(pool, always).placement
    assert (placement.decode, placement.prefill) == ("a", None)
    pool = snapshot({"q": NEW}, MIXED[1])
    without = frozenset({WorkerId("b")})
    placement = decide(pool, always, excluded=without).placement
    assert (placement.decode, placement.prefill) == ("a", None)


def test_a_link_that_was_learned_from_a_past_life_joins_nobody() -> None:
    pool = pool_of(*MIXED)
    assert pool.snapshot(10.0).costs.apart is not None
    link = LinkCost(peer=WorkerId("p"), setup_s=0.0, s_per_byte=0.0)
    pool.report(WorkerId("b"), LIFE, replace(REPORT, links=(link,)), 10.0)
    frozen = pool.snapshot(10.0)
    at = frozen.loads.positions
    assert frozen.costs.seconds(at[WorkerId("b")], at[WorkerId("p")], 1.0) > 1e6
    assert not frozen.may_fetch(WorkerId("b"), WorkerId("p"))
    assert frozen.may_fetch(WorkerId("a"), WorkerId("p"))


def test_when_the_last_old_one_has_gone_nothing_is_apart() -> None:
    pool = pool_of(*MIXED)
    for name in ("p", "a"):
        pool.leave(WorkerId(name), LIFE)
    assert pool.snapshot(10.0).costs.apart is None


def test_the_explanation_says_whom_nobody_understands() -> None:
    pool = snapshot({"q": NEW}, {"a": OLD})
    policy, asked = Policy(rule=Priced()), PlacementRequest(num_prompt_tokens=4000, max_tokens=8)
    state = policy.begin(0)
    decision, _ = place(asked, pool, state, policy)
    told = explain(Attempt(asked, pool, state, policy, decision))
    assert [(each.worker, each.reason) for each in told.left_out] == [
        ("q", "it speaks another wire version than any decode worker")
    ]
    assert told.num_candidates == 1
