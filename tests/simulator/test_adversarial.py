"""Adversarial traffic is what it claims to be, and comes with its name alone."""

from collections import Counter
from itertools import pairwise
from statistics import fmean, median

import pytest

from cluster.errors import ConfigError
from simulator.adversarial import ADVERSARIAL
from simulator.scenario import parse_workload
from simulator.trace import Trace


def made(name: str, seed: int = 1) -> Trace:
    return parse_workload(name, seed=seed)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_a_name_is_enough_and_a_seed_decides(name: str) -> None:
    trace = made(name)
    assert trace == made(name)
    assert trace != made(name, seed=2)
    assert trace.name == name
    assert 100 <= len(trace.requests) <= 2000
    arrivals = [each.arrival_s for each in trace.requests]
    assert arrivals == sorted(arrivals)


def test_everybody_has_the_giant_prefix() -> None:
    trace = parse_workload("giant_prefix: {num_requests: 20, prefix_tokens: 51200}", seed=1)
    assert len({each.grains[:100] for each in trace.requests}) == 1
    assert trace.ideal_hit_tokens() == 19 * 51_200


def test_siblings_of_a_burst_come_at_once_and_differ_at_the_end() -> None:
    requests = made("bursts").requests
    by_moment = Counter(each.arrival_s for each in requests)
    by_prefix = Counter(each.grains[:-1] for each in requests)
    assert len(by_moment) == len(by_prefix) == 40
    assert sorted(by_moment.values()) == sorted(by_prefix.values())
    assert len({each.grains for each in requests}) == len(requests)


def test_what_is_scanned_comes_once_and_what_is_hot_again_and_again() -> None:
    begins = Counter(each.grains[0] for each in made("hot_and_scan").requests)
    num_scanned = sum(count == 1 for count in begins.values())
    assert 0.4 < num_scanned / 900 < 0.6
    assert len(begins) - num_scanned == 40


def test_a_rotation_returns_only_after_all_the_others() -> None:
    trace = parse_workload("rotation: {num_prefixes: 7, num_requests: 70}", seed=1)
    begins = [each.grains[0] for each in trace.requests]
    assert len(set(begins)) == 7
    assert begins[:7] * 10 == begins


def test_what_is_popular_changes_at_once() -> None:
    begins = [each.grains[0] for each in made("shift").requests]
    phases = [set(begins[at : at + 300]) for at in range(0, 1200, 300)]
    assert all(not one & other for one, other in pairwise(phases))
    [(_, most)] = Counter(begins[:300]).most_common(1)
    assert most > 75


def test_a_heavy_tail_has_most_of_the_tokens_in_few_prompts() -> None:
    lengths = sorted(each.num_prompt_tokens for each in made("heavy_tail").requests)
    assert lengths[-1] > 20 * median(lengths)
    assert max(lengths) <= 2048 + 512 * 256
    assert fmean(lengths) > 1.3 * median(lengths)


def test_a_turn_overtakes_the_one_before_it() -> None:
    """The prompt takes longer than it takes the next one to come."""
    last_s: dict[object, float] = {}
    gaps = []
    for each in made("overtaking_turns").requests:
        session = each.grains[2]  # after the system prompt
        if session in last_s:
            gaps.append(each.arrival_s - last_s[session])
        last_s[session] = each.arrival_s
    assert fmean(gaps) == pytest.approx(0.3, rel=0.2)


def test_a_share_is_a_part_of_one() -> None:
    with pytest.raises(ConfigError, match="'scan_share' of invented traffic"):
        parse_workload("hot_and_scan: {scan_share: 1.5}", seed=1)
