"""Decode workers with too little memory: what waits for blocks is computed once."""

import pytest

from router.policy import Disaggregate, Policy
from simulator.run import simulate
from simulator.setting import Setting, WorkerMake
from simulator.synthetic import shared_prefixes


@pytest.mark.slow
def test_a_prompt_that_waits_for_blocks_is_not_computed_again() -> None:
    """Of 150 prompts 83 were, when a hand-over waited for ten seconds at the most."""
    trace = shared_prefixes(
        num_requests=150,
        rate=10.0,
        num_groups=20,
        prefix_tokens=2048,
        own_tokens=3000,
        output_tokens=400,
        seed=3,
    )
    setting = Setting(num_prefill=2, num_decode=2, decode=WorkerMake(cache_tokens=40_000))
    report = simulate(trace, setting, policy=Policy(disaggregate=Disaggregate.ALWAYS), seed=1)
    assert report.num_finished == 150
    assert report.num_recomputes == 0
