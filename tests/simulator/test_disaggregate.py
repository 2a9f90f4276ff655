"""Left to the price, a cluster is as good as with the better of splitting always and never."""

import pytest

from router.policy import Disaggregate, Policy
from router.policy_settings import ServiceClass
from simulator.report import Report
from simulator.run import simulate
from simulator.setting import Setting, Targets
from simulator.synthetic import shared_prefixes

TARGETS = Targets(ttft_s=2.0, itl_s=0.1)
CLASS = ServiceClass(name="default", ttft_s=TARGETS.ttft_s, itl_s=TARGETS.itl_s)
TRACE = shared_prefixes(
    num_requests=150,
    rate=14.0,
    num_groups=20,
    prefix_tokens=1024,
    own_tokens=3000,
    output_tokens=150,
    seed=1,
)


def run(num_prefill: int, disaggregate: Disaggregate) -> Report:
    setting = Setting(num_prefill=num_prefill, num_decode=8 - num_prefill, targets=TARGETS)
    policy = Policy(classes=(CLASS,), disaggregate=disaggregate)
    return simulate(TRACE, setting, policy=policy, seed=1)


@pytest.mark.parametrize(("num_prefill", "better"), [(2, "never"), (6, "always")])
def test_the_price_does_as_well_as_the_better_way(num_prefill: int, better: str) -> None:
    """Two prefill workers are too few, and a queue there waits beside idle decode workers unless
    these take prompts; two decode workers are too few to take many."""
    auto, other = run(num_prefill, Disaggregate.AUTO), run(num_prefill, Disaggregate(better))
    assert auto.ttft.mean_s <= 1.05 * other.ttft.mean_s
    assert auto.goodput >= other.goodput / 1.05
