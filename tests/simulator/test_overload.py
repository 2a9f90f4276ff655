"""Twice as many requests as can be served in time: what early rejection is worth, in goodput."""

from dataclasses import dataclass, replace

import pytest

from router.policy import Disaggregate, Policy
from router.policy_settings import AdmissionRules, ServiceClass
from simulator.report import Report
from simulator.run import simulate
from simulator.setting import Setting, Targets, WorkerMake
from simulator.synthetic import shared_prefixes

TARGETS = Targets(ttft_s=2.0, itl_s=0.1)
CLASS = ServiceClass(name="default", ttft_s=TARGETS.ttft_s, itl_s=TARGETS.itl_s)
NOBODY = Policy(classes=(CLASS,), disaggregate=Disaggregate.ALWAYS)
EARLY = replace(NOBODY, admission=AdmissionRules(rejects_early=True, slack=1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """What runs out first, and how many requests a second it sustains: 95 % of them in time."""

    num_prefill: int
    num_decode: int
    decode: WorkerMake
    rate: float
    own_tokens: int
    output_tokens: int

    def run(self, policy: Policy, times: float, num_requests: int) -> Report:
        trace = shared_prefixes(
            num_requests=num_requests,
            rate=self.rate * times,
            num_groups=20,
            prefix_tokens=1024,
            own_tokens=self.own_tokens,
            output_tokens=self.output_tokens,
            seed=1,
        )
        setting = Setting(
            num_prefill=self.num_prefill,
            num_decode=self.num_decode,
            decode=self.decode,
            targets=TARGETS,
            noise=0.1,
        )
        return simulate(trace, setting, policy=policy, seed=1)


BOTTLENECKS = {
    "prefill": Bottleneck(
        num_prefill=2,
        num_decode=2,
        decode=WorkerMake(),
        rate=6.0,
        own_tokens=3000,
        output_tokens=150,
    ),
    "workers that do both": Bottleneck(
        num_prefill=0,
        num_decode=3,
        decode=WorkerMake(),
        rate=5.0,
        own_tokens=3000,
        output_tokens=150,
    ),
    "decode places": Bottleneck(
        num_prefill=4,
        num_decode=1,
        decode=WorkerMake(max_sequences=32),
        rate=3.0,
        own_tokens=1000,
        output_tokens=400,
    ),
    "places of short answers": Bottleneck(
        num_prefill=2,
        num_decode=1,
        decode=WorkerMake(max_sequences=8),
        rate=5.0,
        own_tokens=3000,
        output_tokens=60,
    ),
    "decode memory": Bottleneck(
        num_prefill=4,
        num_decode=1,
        decode=WorkerMake(cache_tokens=60_000),
        rate=1.2,
        own_tokens=3000,
        output_tokens=400,
    ),
}


def check(
    name: str, num_requests: int, capsys: pytest.CaptureFixture[str], *, collapsed: float
) -> None:
    """`collapsed`: share of the goodput that is left without rejection; it falls with time."""
    bottleneck = BOTTLENECKS[name]
    once = bottleneck.run(EARLY, 1.0, num_requests)
    twice = bottleneck.run(EARLY, 2.0, num_requests)
    flooded = bottleneck.run(NOBODY, 2.0, num_requests)
    with capsys.disabled():
        print(
            f"\noverload of {name}: {once.goodput:.2f} good answers/s at the rate it sustains,"
            f" {twice.goodput:.2f} at twice the rate with {twice.num_rejected} of {num_requests}"
            f" rejected, {flooded.goodput:.2f} without rejection"
        )
    assert once.num_good >= 0.9 * num_requests
    assert once.num_rejected <= 0.05 * num_requests
    assert twice.goodput >= 0.9 * once.goodput
    assert flooded.num_rejected == 0
    assert flooded.goodput <= collapsed * once.goodput
    # Whoever was taken on is served: hardly anybody is late after all.
    num_taken = twice.num_requests - twice.num_rejected
    assert twice.num_finished == num_taken
    assert twice.num_good >= 0.8 * num_taken


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTTLENECKS)
def test_goodput_survives_twice_the_rate(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(name, 400, capsys, collapsed=0.85)


@pytest.mark.prove
@pytest.mark.parametrize("name", BOTTLENECKS)
def test_goodput_survives_twice_the_rate_for_long(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(name, 4000, capsys, collapsed=0.4)
