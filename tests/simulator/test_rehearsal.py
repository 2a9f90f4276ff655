"""The rehearsal beside the simulator: coarser, and right about how many would be served in time."""

import pytest

from deploy.planner.plan import comes
from router.learned.reuse import SIZES, Reuse
from router.policy import Policy
from router.policy_settings import ServiceClass
from simulator.rehearsal import Come, rehearse
from simulator.run import simulate
from simulator.setting import Setting
from simulator.synthetic import shared_prefixes
from simulator.trace import grain_of

TARGETS = Policy(classes=(ServiceClass(name="default", ttft_s=2.0, itl_s=0.1),))


@pytest.mark.parametrize("size", [(2, 1), (2, 2), (4, 2)])
def test_it_is_near_to_the_simulator(size: tuple[int, int]) -> None:
    """Cold prompts, so that caches, which it is told of, make no difference."""
    trace = shared_prefixes(
        num_requests=300,
        rate=2.5,
        num_groups=300,
        prefix_tokens=512,
        own_tokens=6000,
        output_tokens=150,
    )
    setting = Setting(num_prefill=size[0], num_decode=size[1])
    report = simulate(trace, setting, policy=TARGETS)
    num_good = rehearse(comes(trace, setting), setting, *size, most_bad=300)
    assert num_good is not None
    assert abs(num_good - report.num_good) <= 0.08 * 300


def test_a_size_that_will_not_do_is_given_up() -> None:
    setting = Setting(num_prefill=1, num_decode=1)
    requests = [Come(0.1 * at, 16_000, 16_000, 100, 2.0, 0.1) for at in range(200)]
    assert rehearse(requests, setting, 1, 1, most_bad=20) is None
    assert rehearse(requests, setting, 30, 10, most_bad=20) == 200


def test_answers_that_do_not_fit_wait_and_are_slow() -> None:
    """Thirty answers of 20,000 tokens: a pool has room for 18 of them."""
    setting = Setting(num_prefill=20, num_decode=1)
    requests = [Come(0.01 * at, 20_000, 20_000, 400, 60.0, 0.05) for at in range(30)]
    assert rehearse(requests, setting, 20, 1, most_bad=30) == 18
    assert rehearse(requests, setting, 20, 2, most_bad=30) == 30


def test_a_larger_cache_holds_what_came_longer_ago() -> None:
    reuse = Reuse()
    first = [grain_of(number) for number in range(20)]
    assert reuse.of(first, 512) == (0,) * len(SIZES)
    assert reuse.of(first, 512)[0] == 20 * 512  # at once again
    for other in range(300):  # 300 x 512 tokens come in between
        reuse.of([grain_of(1000 + other)], 512)
    held = reuse.of(first, 512)
    assert held[0] == held[1] == 0  # 65,536 and 131,072 tokens
    assert set(held[2:]) == {20 * 512}


def test_of_a_prompt_only_what_leads_counts() -> None:
    reuse = Reuse()
    known, new = [grain_of(number) for number in range(4)], grain_of(99)
    reuse.of(known, 512)
    assert reuse.of([*known[:2], new, *known[3:]], 512)[-1] == 2 * 512


def test_small_grains_are_sampled_alike_in_every_prompt() -> None:
    reuse = Reuse()
    prompt = [grain_of(number) for number in range(320)]  # of 16 tokens
    reuse.of(prompt, 16)
    longer = [*prompt, *(grain_of(1000 + number) for number in range(64))]
    assert reuse.of(longer, 16)[-1] == 320 * 16
