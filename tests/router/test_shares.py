"""Tenants' shares: as values, and over time."""

import contextlib
import random
from collections import Counter

import pytest

from cluster.errors import Overloaded
from router.policy import Policy
from router.policy_settings import AdmissionRules, Quantile, TenantShare
from router.shares import TenantUse, excesses
from tests.router.one_worker import OneWorker

SHARES = (TenantShare(name="a", share=3.0), TenantShare(name="b"), TenantShare(name="z", share=0.0))


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        ({"a": 3.0, "b": 1.0}, {"a": 1.0, "b": 1.0}),
        ({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 2.0}),
        ({"b": 5.0}, {"b": 1.0}),  # nobody else wants any
        ({"b": 1.0, "unlisted": 3.0}, {"b": 1.0, "unlisted": 1.5}),
        ({"a": 1.0, "z": 1.0}, {"a": 1.0, "z": 8.0}),
        ({"z": 1.0}, {"z": 1.0}),
        ({"a": 0.001, "b": 1.0}, {"b": 1.0}),  # who is gone leaves its share to others
        ({}, {}),
    ],
)
def test_excess_is_use_over_share_among_those_who_use_anything(
    used: dict[str, float], expected: dict[str, float]
) -> None:
    assert excesses(used, SHARES) == pytest.approx(expected)


def used(**seconds: float) -> TenantUse:
    use = TenantUse()
    for tenant, gpu_s in seconds.items():
        use.charge(tenant, gpu_s, 0.0)
    return use


def test_shares_mean_nothing_while_nobody_is_late() -> None:
    use = used(a=1.0, b=9.0)
    assert use.excess("b", SHARES, 1.0) == 1.0
    use.late(1.0)
    assert use.excess("b", SHARES, 1.0) == pytest.approx(3.6)
    assert use.excess("a", SHARES, 1.0) == 1.0
    assert use.excess("new", SHARES, 1.0) == 1.0
    assert use.excess("b", SHARES, 5.9) == pytest.approx(3.6)
    assert use.excess("b", SHARES, 6.0) == 1.0


def test_what_was_used_is_forgotten() -> None:
    use = used(b=8.0)
    use.charge("a", 1.0, 180.0)
    assert use.used_s(180.0) == pytest.approx({"a": 1.0, "b": 1.0})
    assert use.used_s(1800.0) == pytest.approx({"a": 2.0**-27, "b": 2.0**-27})
    assert use.used_s(7200.0) == {}


def test_charges_within_a_half_life_weigh_by_their_age() -> None:
    use = used(a=1.0)
    use.charge("b", 1.0, 30.0)
    found = use.used_s(30.0)
    assert found["b"] == pytest.approx(1.0)
    assert found["a"] == pytest.approx(2**-0.5)


def test_tenants_are_bounded() -> None:
    use = TenantUse()
    for number in range(2000):
        use.charge(f"t{number}", 1.0 + number, 0.0)
    assert len(use.used_s(0.0)) == 1024
    assert "t1999" in use.used_s(0.0)


# Over time

WORK_S = 0.4  # of each prompt: the worker computes 2.5 a second
STRICT = AdmissionRules(rejects_early=True, slack=1.0, quantile=Quantile.P50)


def taken_on(rates: dict[str, float], *shares: TenantShare) -> dict[str, float]:
    """Five minutes of tenants that ask so many times a second, one worker, first come first
    served: the share of each tenant's requests that is taken on."""
    policy = Policy(admission=STRICT, tenants=shares)
    worker, asked, taken = OneWorker(policy, WORK_S), Counter[str](), Counter[str]()
    for now, tenant in arrivals(rates, 300.0, random.Random(1)):
        asked[tenant] += 1
        with contextlib.suppress(Overloaded):
            worker.ask(now, tenant)
            taken[tenant] += 1
    return {tenant: taken[tenant] / asked[tenant] for tenant in rates}


def arrivals(
    rates: dict[str, float], seconds: float, chances: random.Random
) -> list[tuple[float, str]]:
    found = []
    for tenant, rate in rates.items():
        at_s = chances.expovariate(rate)
        while at_s < seconds:
            found.append((at_s, tenant))
            at_s += chances.expovariate(rate)
    return sorted(found)


@pytest.mark.slow
def test_who_asks_for_less_than_its_share_gets_it_whatever_others_ask_for() -> None:
    found = taken_on({"greedy": 6.0, "modest": 1.0})
    assert found["modest"] > 0.85
    assert found["greedy"] < 0.35
    assert 6.0 * found["greedy"] + found["modest"] == pytest.approx(2.5, rel=0.05)  # all of it


@pytest.mark.slow
def test_who_both_ask_for_more_get_their_shares() -> None:
    found = taken_on(
        {"a": 6.0, "b": 3.0}, TenantShare(name="a", share=3.0), TenantShare(name="b", share=1.0)
    )
    assert 6.0 * found["a"] / (3.0 * found["b"]) == pytest.approx(3.0, rel=0.15)


@pytest.mark.slow
def test_with_enough_for_all_shares_change_nothing() -> None:
    rates = {"a": 1.2, "b": 0.3}
    equal = taken_on(rates)
    unequal = taken_on(rates, TenantShare(name="a", share=0.001), TenantShare(name="b"))
    assert min(equal.values()) > 0.95
    assert unequal["b"] >= equal["b"] - 0.01
