"""Tenants' shares, as values."""

import pytest

from router.policy_settings import TenantShare
from router.shares import TenantUse, excesses

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
    use.charge("a", 1.0, 1800.0)
    assert set(use.used_s(1800.0)) == {"a"}


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
