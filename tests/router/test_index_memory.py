"""However much goes through it, the index weighs what it did when its budget was first full."""

import json
import subprocess
import sys

import pytest

from tests.router.router_process import ROOT


@pytest.mark.parametrize(
    ("budget_mib", "millions", "cached_share"),
    [
        pytest.param(16, 1, 0.0, marks=pytest.mark.slow),
        pytest.param(64, 10, 0.0, marks=pytest.mark.prove),
        pytest.param(64, 10, 0.4, marks=pytest.mark.prove),
    ],
)
def test_resident_memory_stays_as_it_was_when_the_budget_was_first_full(
    budget_mib: int, millions: float, cached_share: float
) -> None:
    arguments = (str(budget_mib), str(millions), str(cached_share))
    run = subprocess.run(
        (sys.executable, "-m", "tests.router.index_memory", *arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    weighed = json.loads(run.stdout)
    print(weighed)
    assert weighed["full"] > weighed["empty"] + (budget_mib << 20) / 2, "it was never full"
    assert weighed["most"] <= 1.1 * weighed["full"]
    # All of the process's growth, so that the allocator's own losses count, too.
    assert weighed["most"] - weighed["empty"] <= 1.15 * (budget_mib << 20)
