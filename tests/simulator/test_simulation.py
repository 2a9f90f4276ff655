"""The real router and schedulers in virtual time: what a user of the simulator relies on."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError
from cluster.types import DecodeCost, PrefillCost
from router.policies.priced import Priced
from router.policy import Disaggregate, Policy
from simulator.faults import (
    Crash,
    Freeze,
    LostEvents,
    Partition,
    Slow,
    TimedFault,
    random_faults,
)
from simulator.report import Report
from simulator.run import DEFAULT_POLICY, Simulation, simulate
from simulator.setting import PairLink, Setting, WorkerMake
from simulator.synthetic import conversations, fan_outs, shared_prefixes
from simulator.trace import Trace

PREFILL = PrefillCost(c0=0.02, c1=1e-4, c2=2e-6, c3=1e-9)
DECODE = DecodeCost(d0=0.01, d1=1e-7, d2=1e-4)
MAKE = WorkerMake(
    prefill_cost=PREFILL, decode_cost=DECODE, cache_tokens=200_000, block_size=32, max_sequences=16
)
TIGHT = replace(MAKE, cache_tokens=3_200, max_batch_tokens=256)
SETTING = Setting(num_prefill=1, num_decode=2, prefill=MAKE, decode=MAKE)
ALWAYS = Policy(disaggregate=Disaggregate.ALWAYS)
ALONE = replace(SETTING, num_prefill=0, num_decode=1)


def groups(num_requests: int = 80, rate: float = 8.0, seed: int = 0) -> Trace:
    return shared_prefixes(
        num_requests=num_requests,
        rate=rate,
        num_groups=5,
        prefix_tokens=256,
        own_tokens=200,
        output_tokens=40,
        grain=64,
        seed=seed,
    )


def one(num_prompt: int, num_output: int) -> Trace:
    return fan_outs(
        num_prompts=1,
        num_siblings=1,
        shared_tokens=0,
        own_tokens=num_prompt,
        output_tokens=num_output,
    )


def checked(
    trace: Trace,
    setting: Setting,
    faults: tuple[TimedFault, ...] = (),
    policy: Policy = DEFAULT_POLICY,
) -> Report:
    """With every account checked on the way, and nothing left over at the end."""
    simulation = Simulation(trace, setting, policy=policy, seed=3, faults=faults, check_s=1.0)
    report = simulation.run()
    simulation.cluster.check_empty()
    assert report.num_finished + report.num_failed == report.num_requests == len(trace.requests)
    return report


# -- time is what the models say ---------------------------------------------------------------


def test_the_router_takes_requests_one_after_another() -> None:
    """Those that come at once: the first is not held up by the others."""
    trace = fan_outs(
        num_prompts=1, num_siblings=4, shared_tokens=0, own_tokens=100, output_tokens=1
    )
    setting = replace(SETTING, num_prefill=0, num_decode=4, door_s=0.5)
    simulation = Simulation(trace, setting)
    simulation.run()
    ttft_s = sorted(simulation.samples().ttft_s)
    gaps_s = [later - earlier for earlier, later in pairwise(ttft_s)]
    assert gaps_s == pytest.approx([0.5] * 3)
    assert ttft_s[0] < 0.5 + 0.1


def test_one_request_alone_takes_what_the_models_say() -> None:
    report = simulate(one(640, 11), ALONE)
    message_s = ALONE.message_s
    assert report.ttft.p50_s == pytest.approx(PREFILL.seconds(640, 0) + 2 * message_s)
    decode_s = sum(DECODE.seconds(640 + i, 1) for i in range(10))
    assert report.itl.mean_s == pytest.approx(decode_s / 10)
    assert report.decode_busy_s == pytest.approx(PREFILL.seconds(640, 0) + decode_s)
    assert report.gpu_s == pytest.approx(4 * report.duration_s)


def test_a_report_says_how_far_a_worker_is_taken_up() -> None:
    """It steps all the time for one answer as for two; its batch and its memory tell."""
    alone = simulate(one(640, 1001), ALONE)
    assert alone.decode_use.batch == pytest.approx(1.0, abs=0.05)
    assert alone.decode_use.most_kv_share == pytest.approx(
        1640 / ALONE.decode.cache_tokens, rel=0.1
    )
    trace = fan_outs(
        num_prompts=1, num_siblings=2, shared_tokens=0, own_tokens=640, output_tokens=1001
    )
    both = simulate(trace, ALONE)
    assert both.decode_use.batch == pytest.approx(2 * alone.decode_use.batch, abs=0.1)
    assert both.decode_use.kv_share == pytest.approx(2 * alone.decode_use.kv_share, rel=0.1)
    assert both.prefill_use.batch == 0.0


def test_a_hand_over_adds_what_of_the_transfer_the_prefill_does_not_hide() -> None:
    setting = replace(SETTING, link=PairLink(setup_s=0.01, bytes_per_s=1e9))
    report = simulate(one(640, 2), setting, policy=ALWAYS)
    num_bytes = 640 * setting.model.token_bytes
    assert report.moved_bytes == num_bytes
    prefill_s, message_s = PREFILL.seconds(640, 0), setting.message_s
    assert report.ttft.p50_s == pytest.approx(prefill_s + 4 * message_s)
    layer_s = num_bytes / 80 / 1e9
    # Scheduled, and granted: two messages before anything travels.
    hidden_s = (prefill_s - 2 * message_s) * 79 / 80
    visible_s = 0.01 + 79 * layer_s - hidden_s + layer_s
    assert report.itl.mean_s == pytest.approx(visible_s + DECODE.seconds(640, 1))


def test_a_slower_worker_takes_that_much_longer() -> None:
    slow = Slow(worker="decode-0", at_s=0.0, factor=2.0)
    trace = fan_outs(
        num_prompts=2, num_siblings=1, shared_tokens=0, own_tokens=640, output_tokens=5, gap_s=9.0
    )
    usual, slowed = simulate(trace, ALONE), simulate(trace, ALONE, faults=[slow])
    assert slowed.decode_busy_s == pytest.approx(2 * usual.decode_busy_s, rel=0.1)


# -- caches ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_worker_with_room_for_all_finds_every_prefix() -> None:
    trace = conversations(
        num_sessions=20,
        rate=0.5,
        num_turns=3,
        system_tokens=256,
        turn_tokens=150,
        output_tokens=20,
        think_s=20.0,
        grain=64,
    )
    report = checked(trace, ALONE)
    # Of a prompt of whole grains the last block is computed: its last token is sampled from.
    lost = sum(32 - 1 for each in trace.requests if each.num_prompt_tokens % 64 == 0)
    assert 0 <= report.num_ideal_hit_tokens - report.num_hit_tokens <= lost
    assert report.num_predicted_hit_tokens == pytest.approx(report.num_hit_tokens, rel=0.02)


def test_a_small_cache_finds_less() -> None:
    small = replace(ALONE, decode=replace(MAKE, cache_tokens=3_200))
    assert checked(groups(), small).num_hit_tokens < checked(groups(), ALONE).num_hit_tokens


def popular() -> Trace:
    """Three long prefixes, each wanted by more than one worker can serve."""
    return shared_prefixes(
        num_requests=200,
        rate=30.0,
        num_groups=3,
        prefix_tokens=4096,
        own_tokens=100,
        output_tokens=40,
        grain=64,
        seed=1,
    )


POPULAR = replace(SETTING, num_prefill=3, num_decode=3)


def test_siblings_that_come_at_once_share_what_the_first_computes() -> None:
    """16 prompts x 8 siblings, 4,096 shared and 64 own tokens: at most 86.2 % can be shared. Those
    of the first prompt find all idle, and nobody waits beside an idle worker: a copy each."""
    burst = fan_outs(
        num_prompts=16, num_siblings=8, shared_tokens=4096, own_tokens=64, output_tokens=16
    )
    for num_prefill, num_decode in ((4, 4), (8, 8), (0, 8)):
        report = checked(burst, Setting(num_prefill=num_prefill, num_decode=num_decode))
        num_copies = 16 + num_prefill + num_decode - 1
        num_computed = report.num_prompt_tokens - report.num_hit_tokens
        assert num_computed <= 4096 * num_copies + 64 * 128


@pytest.mark.slow
def test_a_prefix_is_fetched_where_that_is_faster_than_to_wait_or_to_compute() -> None:
    fetches = checked(popular(), POPULAR)
    computes = checked(popular(), POPULAR, policy=Policy(rule=Priced(may_fetch=False)))
    assert fetches.num_fetched_tokens >= 3 * 4096
    assert fetches.fetched_bytes == fetches.num_fetched_tokens * POPULAR.model.token_bytes
    assert computes.num_fetched_tokens == 0
    assert fetches.ttft.mean_s < computes.ttft.mean_s
    assert fetches.num_hit_tokens == pytest.approx(fetches.num_predicted_hit_tokens, rel=0.02)


@pytest.mark.slow
def test_a_prefix_that_does_not_come_is_computed() -> None:
    """Links so slow that the time limit ends each fetch; the router has not been told."""
    slow = replace(POPULAR, fetch_s=0.03)
    report = checked(popular(), slow)
    assert report.num_failed_fetches > 0
    assert report.num_finished == 200
    assert report.num_hit_tokens < report.num_predicted_hit_tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Crash(worker="prefill-0", at_s=0.6, for_s=2.0),
        Freeze(worker="prefill-0", at_s=0.6, for_s=2.5),
        Freeze(worker="prefill-0", at_s=0.6, for_s=20.0),
    ],
)
def test_who_fetches_does_not_wait_for_a_source_that_is_lost(fault: TimedFault) -> None:
    report = checked(popular(), POPULAR, (fault,))
    assert report.num_finished == 200
    assert report.ttft.p99_s < POPULAR.lease_s + 2.0


# -- accounts ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("disaggregate", list(Disaggregate))
def test_every_request_ends_and_every_block_returns(disaggregate: Disaggregate) -> None:
    report = checked(groups(), SETTING, policy=Policy(disaggregate=disaggregate))
    assert report.num_finished == report.num_requests
    assert report.num_output_tokens == sum(each.num_output_tokens for each in groups().requests)
    assert (report.moved_bytes > 0) == (disaggregate is not Disaggregate.NEVER)


@pytest.mark.slow
def test_too_little_memory_puts_answers_back_and_ends_them_all() -> None:
    trace = shared_prefixes(
        num_requests=60,
        rate=40.0,
        num_groups=2,
        prefix_tokens=64,
        own_tokens=100,
        output_tokens=300,
        grain=64,
    )
    report = checked(trace, replace(ALONE, decode=TIGHT))
    assert report.num_preemptions > 0
    assert report.num_finished == 60


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report() -> None:
    noisy = replace(SETTING, noise=0.1)
    faults = random_faults(5, ["decode-0", "decode-1", "prefill-0"], num=4, duration_s=10.0)
    first, again, other = (
        Simulation(groups(), noisy, seed=seed, faults=faults).run() for seed in (1, 1, 2)
    )
    assert repr(first) == repr(again)
    assert first != other


def assert_jumping_changes_nothing(data: st.DataObject) -> None:
    trace = shared_prefixes(
        num_requests=data.draw(st.integers(1, 30)),
        rate=data.draw(st.sampled_from([2.0, 20.0, 200.0])),
        num_groups=3,
        prefix_tokens=data.draw(st.sampled_from([32, 256])),
        own_tokens=data.draw(st.sampled_from([10, 200])),
        output_tokens=data.draw(st.sampled_from([1, 40, 200])),
        grain=data.draw(st.sampled_from([16, 32, 128])),
        seed=data.draw(st.integers(0, 99)),
    )
    make = replace(TIGHT, cache_tokens=data.draw(st.sampled_from([3_200, 9_600, 200_000])))
    setting = replace(
        SETTING,
        prefill=make,
        decode=make,
        num_prefill=data.draw(st.integers(0, 2)),
        num_decode=data.draw(st.integers(1, 3)),
        noise=data.draw(st.sampled_from([0.0, 0.2])),
    )
    workers = [f"prefill-{i}" for i in range(setting.num_prefill)] + ["decode-0"]
    num_faults = data.draw(st.sampled_from([0, 0, 4]))
    faults = random_faults(data.draw(st.integers(0, 99)), workers, num=num_faults, duration_s=5.0)
    jumped = Simulation(trace, setting, seed=1, faults=faults)
    stepped = Simulation(trace, setting, seed=1, faults=faults, jumps=False)
    assert jumped.run() == stepped.run()
    jumped.cluster.check_empty()


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_jumping_over_steps_changes_nothing(data: st.DataObject) -> None:
    assert_jumping_changes_nothing(data)


@pytest.mark.prove
@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_jumping_over_steps_changes_nothing_at_length(data: st.DataObject) -> None:
    assert_jumping_changes_nothing(data)


# -- faults ------------------------------------------------------------------------------------


def test_a_crash_of_a_decode_worker_moves_its_requests() -> None:
    report = checked(groups(), SETTING, (Crash(worker="decode-0", at_s=5.0, for_s=4.0),))
    assert report.num_moved > 0
    assert report.num_finished == report.num_requests
    assert report.num_output_tokens == sum(each.num_output_tokens for each in groups().requests)


def test_without_another_worker_a_crash_fails_its_requests() -> None:
    report = checked(groups(), ALONE, (Crash(worker="decode-0", at_s=5.0),))
    assert 0 < report.num_finished < report.num_requests


def test_a_crash_of_a_prefill_worker_is_computed_again_by_the_decode_workers() -> None:
    crash = Crash(worker="prefill-0", at_s=2.0, for_s=4.0)
    report = checked(groups(rate=30.0), SETTING, (crash,), ALWAYS)
    assert report.num_recomputes > 0
    assert report.num_finished == report.num_requests


def test_a_frozen_worker_gets_nothing_after_its_silence() -> None:
    setting = replace(SETTING, num_prefill=0, lapse_s=60.0)
    freeze = Freeze(worker="decode-0", at_s=3.0, for_s=8.0)
    simulation = Simulation(groups(), setting, faults=[freeze])
    placed: list[float] = []
    router = simulation.cluster.router
    frozen = simulation.cluster.sites["decode-0"]
    book = type(router.pool).book

    def note(pool: object, booking: object) -> None:
        if booking.decode == "decode-0" and frozen.site.is_frozen:  # type: ignore[attr-defined]
            placed.append(simulation.now_s)
        book(router.pool, booking)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(router.pool), "book", note)
        report = simulation.run()
    assert all(moment < 3.0 + 1.0 + 0.3 for moment in placed)
    assert report.num_finished == report.num_requests
    simulation.cluster.check_empty()


def test_a_worker_that_stays_frozen_is_killed_and_its_requests_go_on_elsewhere() -> None:
    report = checked(groups(), SETTING, (Freeze(worker="decode-1", at_s=3.0, for_s=30.0),))
    assert report.num_moved > 0
    assert report.num_finished == report.num_requests


def test_hand_overs_do_not_wait_for_a_frozen_writer() -> None:
    freeze = Freeze(worker="prefill-0", at_s=3.0, for_s=4.5)
    report = checked(groups(rate=20.0), SETTING, (freeze,), ALWAYS)
    assert report.num_recomputes > 0
    assert report.ttft.p99_s < SETTING.lease_s + 2.0


@pytest.mark.slow
def test_lost_events_are_asked_for_again() -> None:
    trace = groups(num_requests=120)
    lost = LostEvents(worker="decode-0", at_s=0.0, for_s=3.0)
    usual, missed = checked(trace, ALONE), checked(trace, ALONE, (lost,))
    assert missed.num_predicted_hit_tokens < usual.num_predicted_hit_tokens
    assert missed.num_predicted_hit_tokens > 0.5 * usual.num_predicted_hit_tokens


@pytest.mark.slow
def test_a_long_partition_moves_requests_and_a_short_one_delays_them() -> None:
    short = checked(groups(), SETTING, (Partition(worker="decode-0", at_s=3.0, for_s=2.0),))
    long = checked(groups(), SETTING, (Partition(worker="decode-0", at_s=3.0, for_s=9.0),))
    assert short.num_moved == 0 < long.num_moved
    assert short.num_finished == long.num_finished == 80


def test_what_was_drawn_behind_a_cut_is_drawn_again_after_a_crash() -> None:
    trace = shared_prefixes(
        num_requests=8,
        rate=200.0,
        num_groups=3,
        prefix_tokens=64,
        own_tokens=100,
        output_tokens=40,
        grain=64,
    )
    cut = Partition(worker="decode-0", at_s=0.25, for_s=30.0)
    crash = Crash(worker="decode-0", at_s=3.0, for_s=9.0)
    report = checked(trace, replace(SETTING, lapse_s=20.0), (cut, crash))
    assert report.num_moved > 0
    assert report.num_finished == 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_whatever_goes_wrong_the_accounts_agree(seed: int) -> None:
    setting = replace(SETTING, num_prefill=2, num_decode=3, decode=TIGHT)
    workers = [f"prefill-{i}" for i in range(2)] + [f"decode-{i}" for i in range(3)]
    faults = random_faults(seed, workers, num=12, duration_s=15.0)
    checked(groups(seed=seed), setting, tuple(faults))


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(ConfigError, match="decode worker"):
        replace(SETTING, num_decode=0)
    with pytest.raises(ConfigError, match="There is no worker 'decode-9'"):
        simulate(groups(), SETTING, faults=[Crash(worker="decode-9", at_s=0.0)])
    with pytest.raises(ConfigError, match="do not nest"):
        simulate(groups(), replace(SETTING, decode=replace(MAKE, block_size=48)))
    with pytest.raises(ConfigError, match="report_s"):
        replace(SETTING, report_s=0.0)
    with pytest.raises(ConfigError, match="begins"):
        Crash(worker="decode-0", at_s=-1.0)
    with pytest.raises(ConfigError, match="multiple"):
        Slow(worker="decode-0", at_s=0.0, factor=0.0)


def test_what_never_fits_fails_and_no_requests_make_an_empty_report() -> None:
    empty = simulate(Trace(name="none", grain=64, requests=()), SETTING)
    assert (empty.num_requests, empty.num_finished, empty.cost) == (0, 0, 0.0)
    huge = simulate(one(300_000, 4), SETTING)
    assert (huge.num_failed, huge.num_finished) == (1, 0)
