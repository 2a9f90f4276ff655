"""Placement as tables: who gets a request, and what is predicted of it."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from cluster.types import WorkerId
from router.decision import Decision, PlacementRequest, Quotes, place, quote
from router.load import Load
from router.pair_costs import PairCosts
from router.policies import priced
from router.policies.least_work import LeastWork
from router.policies.priced import Priced, least_ahead
from router.policies.registry import RULES
from router.policies.round_robin import RoundRobin
from router.policy import Disaggregate, Policy, PolicyState
from router.policy_settings import Order, QueueOrder, ServiceClass
from tests.router.pool_samples import for_pool, load, snapshot

A, B, D, P = (WorkerId(name) for name in "abdp")


def decide(
    request: PlacementRequest,
    decode: list[Load],
    prefill: list[Load] | None = None,
    *,
    policy: Policy | None = None,
    seed: int = 0,
    s_per_byte: float = 1e-9,
) -> Decision:
    policy = policy or Policy()
    pool = snapshot(decode, prefill, s_per_byte=s_per_byte)
    decision, _ = place(for_pool(request, pool), pool, policy.begin(seed), policy)
    assert decision is not None
    return decision


def prompt(num_tokens: int, **changes: Any) -> PlacementRequest:
    """What workers hold is said by their names, until `for_pool`."""
    return PlacementRequest(num_prompt_tokens=num_tokens, max_tokens=64, **changes)


def cached(**num_tokens: int) -> dict[str, Any]:
    """Of grains of one token."""
    held = {WorkerId(name): count for name, count in num_tokens.items()}
    return {"num_ready": held, "grain_tokens": 1}


def backlog(seconds: float, due_s: float = 0.0) -> dict[str, Any]:
    return {"backlog": ((due_s, seconds),)}


DECODE_TABLE: list[tuple[Any, ...]] = [
    ("the idle one", prompt(500), {}, {"num_running": 20}, A),
    ("the one with the prefix", prompt(500, **cached(b=480)), {}, {}, B),
    ("prefix against a short queue", prompt(2000, **cached(b=1900)), {}, backlog(0.1), B),
    ("a long queue outweighs a prefix", prompt(2000, **cached(b=1900)), {}, backlog(4.0), A),
    ("bookings weigh like a queue", prompt(2000, **cached(b=1900)), {}, {"booked_s": 4.0}, A),
    ("room", prompt(500), {}, {"num_free_tokens": 100, "num_running": 1}, A),
    (
        "a free sequence",
        prompt(500),
        {"num_running": 2},
        {"max_sequences": 1, "num_running": 1},
        A,
    ),
    ("the faster", prompt(500), {}, {"c1": 1e-4}, B),
    ("an excluded worker never", prompt(500, excluded=frozenset({A})), {}, backlog(50.0), B),
    ("the session's", prompt(500, session_worker=B), {}, {"num_running": 2}, B),
    ("but not at any price", prompt(500, session_worker=B), {}, backlog(9.0), A),
]


@pytest.mark.parametrize(
    ("request_", "a", "b", "expected"),
    [row[1:] for row in DECODE_TABLE],
    ids=[row[0] for row in DECODE_TABLE],
)
def test_without_prefill_workers_the_cheapest_decode_worker_is(
    request_: PlacementRequest, a: dict[str, Any], b: dict[str, Any], expected: WorkerId
) -> None:
    # So slow a link that nothing is fetched.
    placement = decide(request_, [load("a", **a), load("b", **b)], s_per_byte=1e-3).placement
    assert (placement.decode, placement.prefill, placement.source) == (expected, None, None)


SPLIT_TABLE: list[tuple[Any, ...]] = [
    ("a short prompt stays", prompt(12), {}, None),
    ("a long one goes", prompt(2000), {}, P),
    ("not so long a one stays, where nobody waits for it", prompt(100), {}, None),
    ("a mostly cached one stays", prompt(2000, **cached(d=1990)), {}, None),
    ("beside many answers even a shorter one goes", prompt(500), {"num_running": 30}, P),
    ("cached on the prefill worker: goes there", prompt(2000, **cached(p=1900)), {}, P),
]


@pytest.mark.parametrize(
    ("request_", "decode", "expected"),
    [row[1:] for row in SPLIT_TABLE],
    ids=[row[0] for row in SPLIT_TABLE],
)
def test_prefill_is_handed_over_when_that_costs_less(
    request_: PlacementRequest, decode: dict[str, Any], expected: WorkerId | None
) -> None:
    assert decide(request_, [load("d", **decode)], [load("p")]).placement.prefill == expected


def test_a_backlog_at_prefill_brings_prompts_back_to_an_idle_decode_worker() -> None:
    assert decide(prompt(2000), [load("d")], [load("p", **backlog(8.0))]).placement.prefill is None


def test_no_prompt_waits_long_at_prefill_beside_answers_that_can_spare_the_time() -> None:
    """Ten seconds of prompt, thirty at prefill before it, and seven answers that are paced at a
    tenth of their target: none of them will be late for it."""
    service = ServiceClass(name="default", ttft_s=2.0, itl_s=0.2)
    request = PlacementRequest(
        num_prompt_tokens=50_000,
        max_tokens=4000,
        num_output_tokens=400.0,
        num_typical_tokens=400.0,
        service_class=service,
    )
    pool = [load("d", num_running=7)], [load("p", **backlog(30.0))]
    assert decide(request, *pool).placement.prefill is None
    at_their_target = ServiceClass(name="default", ttft_s=2.0, itl_s=0.018)
    assert decide(request._replace(service_class=at_their_target), *pool).placement.prefill == P


def test_few_long_answers_do_not_make_short_ones_late() -> None:
    """A second of prompt, two at prefill before it: an answer as long as the mean can spare it,
    most answers cannot."""
    service = ServiceClass(name="default", ttft_s=2.0, itl_s=0.1)
    request = PlacementRequest(
        num_prompt_tokens=5000, max_tokens=4000, num_output_tokens=200.0, service_class=service
    )
    pool = [load("d", num_running=7)], [load("p", **backlog(2.0))]
    about_as_long = request._replace(num_typical_tokens=200.0)
    mostly_short = request._replace(num_typical_tokens=12.0)
    assert decide(about_as_long, *pool).placement.prefill is None
    assert decide(mostly_short, *pool).placement.prefill == P


def test_a_queue_drains_while_no_report_comes() -> None:
    fresh = load("a", **backlog(0.4))
    aged = load("b", **backlog(0.4), reported_s=-0.2)
    assert decide(prompt(500), [fresh, aged]).placement.decode == "b"


def test_only_what_is_due_before_a_prompt_is_waited_for() -> None:
    """A short prompt passes 100,000 tokens that are due later; first come, first served waits."""
    long_queue = load("a", backlog=((0.0, 0.1), (25.0, 20.0)))
    by_due = decide(prompt(500), [long_queue])
    assert by_due.wait_s == pytest.approx(0.1)
    assert by_due.due_s == pytest.approx(2.0 + by_due.prefill_s)
    fifo = Policy(queue=QueueOrder(order=Order.FIFO))
    assert decide(prompt(500), [long_queue], policy=fifo).due_s == 0.0
    overdue = load("a", backlog=((0.0, 20.0),))
    assert decide(prompt(500), [overdue], policy=fifo).wait_s == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("mode", "num_tokens", "expected"),
    [
        (Disaggregate.ALWAYS, 4, P),
        (Disaggregate.NEVER, 2000, None),
        (Disaggregate.AUTO, 2000, P),
    ],
)
@pytest.mark.parametrize("rule", ["priced", "least_work"])
def test_the_operator_may_fix_the_mode(
    mode: Disaggregate, num_tokens: int, expected: WorkerId | None, rule: str
) -> None:
    policy = Policy(disaggregate=mode, rule=RULES[rule]())
    placement = decide(prompt(num_tokens), [load("d")], [load("p")], policy=policy).placement
    assert placement.prefill == expected


def test_always_prefills_locally_when_no_prefill_worker_serves() -> None:
    policy = Policy(disaggregate=Disaggregate.ALWAYS)
    assert decide(prompt(2000), [load("d")], policy=policy).placement.prefill is None


def test_a_prompt_that_can_never_fit_a_prefill_worker_is_not_sent_there() -> None:
    small = load("p", num_total_tokens=1000)
    assert decide(prompt(2000), [load("d")], [small]).placement.prefill is None


@pytest.mark.parametrize("num_tokens", [2000, 1500])  # with and without the answer
def test_nobody_decodes_what_can_never_fit_there(num_tokens: int) -> None:
    """It would refuse what another can serve, however busy that one is."""
    small = load("a", num_total_tokens=1550, num_free_tokens=1550)
    busy = load("b", num_running=40, num_prompts=9, **backlog(9.0))
    for prefill in ([], [load("p")]):
        decision = decide(prompt(num_tokens), [small, busy], prefill)
        assert decision.placement.decode == B
    assert decide(prompt(num_tokens), [small]).placement.decode == A  # which tells its caller


def test_equals_are_drawn_alike_whoever_comes_first() -> None:
    policy = Policy()
    state, chosen = policy.begin(3), Counter[WorkerId]()
    pool = snapshot([load("a"), load("b"), load("c")])
    for _ in range(300):
        decision, state = place(prompt(500), pool, state, policy)
        assert decision is not None
        chosen[decision.placement.decode] += 1
    assert min(chosen.values()) > 70


def test_the_same_state_decides_the_same() -> None:
    pool, policy = snapshot([load("a"), load("b"), load("c")]), Policy()
    first = place(prompt(500), pool, policy.begin(9), policy)
    assert first == place(prompt(500), pool, policy.begin(9), policy)


def test_nobody_left_is_no_decision() -> None:
    policy = Policy()
    state = PolicyState(policy.rule.begin(0), 3)
    for pool in (snapshot([load("a")]), snapshot([])):
        request = prompt(5, excluded=frozenset({A}))
        assert place(request, pool, state, policy) == (None, state)


def test_a_burst_spreads_by_its_bookings() -> None:
    """Placed at one instant, between two reports: nobody is herded."""
    booked = {"a": 0, "b": 0, "c": 0}
    for turn in range(30):
        loads = [
            load(
                name,
                booked_s=0.1 * count,
                num_prompts=count,
                num_waiting=count,
                num_context_tokens=500 * count,
            )
            for name, count in booked.items()
        ]
        booked[decide(prompt(500), loads, seed=turn).placement.decode] += 1
    assert booked == {"a": 10, "b": 10, "c": 10}


def test_a_prefix_is_fetched_where_that_is_cheaper_than_its_holders_queue() -> None:
    busy, idle = load("a", **backlog(5.0)), load("b")
    decision = decide(prompt(2000, **cached(a=1900)), [busy, idle])
    assert decision.placement.decode == "b"
    assert (decision.placement.source, decision.placement.num_source_tokens) == ("a", 1900)
    assert decision.num_cached_tokens == 1900
    assert decision.wait_s == pytest.approx(0.005 + 1900 * 2048 * 1e-9)
    slow = decide(prompt(2000, **cached(a=1900)), [busy, idle], s_per_byte=1e-5)
    assert (slow.placement.decode, slow.placement.source) == ("b", None)


def test_what_is_only_expected_draws_siblings_but_is_not_fetched() -> None:
    siblings = prompt(2000, num_held={A: 1900}, grain_tokens=1)
    assert decide(siblings, [load("a", **backlog(0.1)), load("b")]).placement.decode == "a"
    elsewhere = decide(siblings, [load("a", **backlog(9.0)), load("b")]).placement
    assert (elsewhere.decode, elsewhere.source) == ("b", None)


def test_the_weight_of_a_class_counts_its_own_waiting() -> None:
    """Where waiting costs little, reuse wins."""
    holder, other = load("a", **backlog(0.6)), load("b", **backlog(0.1))
    for weight, expected in ((0.1, A), (4.0, B)):
        request = prompt(
            2000, **cached(a=1900), service_class=ServiceClass(name="c", weight=weight)
        )
        assert decide(request, [holder, other], s_per_byte=1e-3).placement.decode == expected


def test_a_named_rule_chooses_who_computes_and_the_price_who_decodes() -> None:
    policy = Policy(rule=LeastWork())
    prefills = [load("p", **backlog(3.0)), load("q", **backlog(1.0))]
    placement = decide(
        prompt(9, **cached(p=8)), [load("a", num_running=9), load("b")], prefills, policy=policy
    ).placement
    assert (placement.decode, placement.prefill) == ("b", "q")


@pytest.mark.parametrize("name", RULES)
def test_every_rule_can_be_the_policy(name: str) -> None:
    policy = Policy(rule=RULES[name]())
    state, pool = policy.begin(1), snapshot([load("a"), load("b")], [load("p"), load("q")])
    for excluded in (frozenset[WorkerId](), frozenset({A})):
        request = prompt(700, **cached(p=640, b=32), excluded=excluded)
        decision, state = place(for_pool(request, pool), pool, state, policy)
        assert decision is not None
        assert decision.placement.decode not in excluded
        assert decision.num_prefill_tokens + decision.num_cached_tokens == 700
        alone = snapshot([load("a"), load("b")])
        local, _ = place(for_pool(request, alone), alone, policy.begin(1), policy)
        assert local is not None
        assert local.placement.prefill is None
        assert local.placement.decode not in excluded


def test_round_robin_goes_around_the_prefill_workers() -> None:
    policy = Policy(rule=RoundRobin())
    state, pool = policy.begin(0), snapshot([load("a")], [load("p"), load("q")])
    chosen = []
    for _ in range(4):
        decision, state = place(prompt(700), pool, state, policy)
        assert decision is not None
        chosen.append(decision.placement.prefill)
    assert chosen == ["p", "q", "p", "q"]


def test_predictions_are_those_of_the_chosen() -> None:
    decode = load("d", num_running=4, num_context_tokens=1000)
    policy = Policy(disaggregate=Disaggregate.ALWAYS)
    prefill = load("p", **backlog(0.05))
    decision = decide(prompt(1000, **cached(d=160, p=320)), [decode], [prefill], policy=policy)
    assert decision.placement.prefill == "p"
    assert decision.num_cached_tokens == 320
    assert decision.num_prefill_tokens == 680
    assert decision.wait_s == pytest.approx(0.05)
    assert decision.prefill_s == pytest.approx(0.002 + 680 * 2e-4)
    assert decision.ttft_s == pytest.approx(0.052 + 680 * 2e-4)
    assert decision.itl_s == pytest.approx(0.01 + 1e-7 * 2000 + 0.0005 * 5)


def test_the_last_prompt_token_is_never_counted_as_cached() -> None:
    assert decide(prompt(64, **cached(d=64)), [load("d")]).num_prefill_tokens == 1


def test_workers_are_scarce_by_the_least_work_ahead() -> None:
    def ahead(*workers: tuple[float, int]) -> float:
        """Each: seconds of work ahead, in so many prompts."""
        seconds, prompts = zip(*workers, strict=True)
        return least_ahead(np.array(seconds), np.array(prompts))

    assert ahead((0.0, 0), (0.0, 0)) == 0.0
    assert ahead((6.0, 3), (6.0, 3)) == 3.0
    assert ahead((6.0, 3), (2.0, 1)) == 1.0
    assert ahead((600.0, 300), (0.0, 0)) == 0.0  # one pile makes nobody scarce


def test_a_copy_is_made_sooner_where_others_wait_for_it_too() -> None:
    holder, idle = load("a", num_prompts=4, **backlog(0.3)), load("b")
    for siblings, expected in (({}, A), ({A: 4}, B)):
        request = prompt(2000, **cached(a=1900), num_siblings=siblings)
        assert decide(request, [holder, idle], s_per_byte=1e-3).placement.decode == expected


def test_nobody_waits_for_his_turn_longer_than_an_idle_worker_needs() -> None:
    """Whatever reuse would save: many prompts wait everywhere but at one."""
    rng, policy = random.Random(7), Policy()
    for case in range(200):
        num_tokens = rng.choice((200, 2000, 8000))
        spread = rng.choice((0.1, 1.0, 10.0))
        prefill = [
            load(f"p{i}", num_prompts=40, **backlog(spread * rng.random())) for i in range(6)
        ]
        prefill.append(load("idle"))
        decode = [load("d", num_running=20, num_delayed=21)]
        holders = {each.worker: rng.randrange(num_tokens) for each in prefill[:3]}
        request = prompt(num_tokens, num_ready=holders, grain_tokens=1)
        pool = snapshot(decode, prefill, s_per_byte=rng.choice((1e-12, 1e-7)))
        decision, _ = place(for_pool(request, pool), pool, policy.begin(case), policy)
        assert decision is not None
        assert decision.wait_s <= prefill[-1].prefill_s(num_tokens, 0.0)


@pytest.mark.parametrize(
    ("idle", "s_per_byte"),
    [
        pytest.param({}, 1e-6, id="whose hand-over takes long"),
        pytest.param({"num_free_tokens": 100}, 1e-9, id="whose cache is held by others"),
    ],
)
def test_nobody_is_sent_to_an_idle_worker_that_serves_him_later(
    idle: dict[str, Any], s_per_byte: float
) -> None:
    policy = Policy(rule=Priced(may_fetch=False), disaggregate=Disaggregate.ALWAYS)
    near = load("p", num_prompts=2, **backlog(0.6))
    pool = snapshot([load("d")], [load("idle", num_unused_tokens=0, **idle), near])
    costs = PairCosts(pool.costs.setup_s.copy(), pool.costs.s_per_byte.copy())
    costs.s_per_byte[2, 0] = s_per_byte
    patient = ServiceClass(name="batch", weight=0.1)
    request = for_pool(prompt(2000, **cached(p=1980), service_class=patient), pool)
    decision, _ = place(request, pool._replace(costs=costs), policy.begin(0), policy)
    assert decision is not None
    assert decision.placement.prefill == P


def test_a_first_token_that_can_still_be_in_time_is_worth_more() -> None:
    """The holder would be late; another worker, which has to compute more, is not."""
    policy = Policy(rule=Priced(may_fetch=False), disaggregate=Disaggregate.ALWAYS)
    holder, other = (
        load(name, num_prompts=2, **backlog(wait_s)) for name, wait_s in (("p", 3.3), ("q", 2.0))
    )
    for target_s, expected in ((2.65, "q"), (60.0, "p")):
        service = ServiceClass(name="c", ttft_s=target_s)
        request = prompt(3000, **cached(p=2900), service_class=service)
        decision = decide(request, [load("d")], [holder, other], policy=policy)
        assert decision.placement.prefill == expected


def test_leaving_out_who_cannot_win_changes_no_decision() -> None:
    """With many pairs only contenders are priced: the same minimum, drawn among the same ties."""
    rng, policy = random.Random(4), Policy()
    for case in range(60):
        spread = rng.choice((0.0, 0.01, 1.0))
        decode = [load(f"d{i}", **backlog(spread * rng.random())) for i in range(70)]
        prefill = [load(f"p{i}", **backlog(spread * rng.random())) for i in range(70)]
        pool = snapshot(decode, prefill, s_per_byte=rng.choice((1e-12, 1e-7)))
        holders = {rng.choice(pool.loads).worker: rng.randrange(200) for _ in range(5)}
        request = for_pool(prompt(rng.choice((20, 4000)), num_ready=holders), pool)
        state = policy.begin(case)
        some = quote(request, pool, state, policy)
        every = quote(request, pool, state, policy, all_of_them=True)
        least = every.price_s.min()
        assert some.price_s.min() == pytest.approx(least, rel=1e-12)
        assert _winners(some, least) == _winners(every, least)


def test_not_to_price_fetches_that_cannot_pay_changes_no_price(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng, policy, num_priced = random.Random(6), Policy(), Counter[int]()
    for case in range(100):
        decode = [load(f"d{i}", **backlog(rng.choice((0.0, rng.random())))) for i in range(4)]
        prefill = [load(f"p{i}", **backlog(rng.choice((0.0, rng.random())))) for i in range(4)]
        pool = snapshot(decode, prefill, s_per_byte=10.0 ** rng.uniform(-8, -3))
        weight = rng.choice((0.1, 1.0, 30.0))
        request = prompt(
            rng.choice((200, 4000)),
            num_ready={rng.choice(pool.loads).worker: 9},
            service_class=ServiceClass(name="c", weight=weight),
        )
        request = for_pool(request, pool)
        quotes = []
        for may_pay in (priced._may_pay, lambda *_: True):
            with monkeypatch.context() as patched:
                patched.setattr(priced, "_may_pay", may_pay)
                quotes.append(quote(request, pool, policy.begin(case), policy))
        some, every = quotes
        assert some.price_s.tolist() == every.price_s.tolist()
        num_priced[len(some.bids.ways)] += 1
    assert min(num_priced[1], num_priced[2]) > 10


def _winners(quotes: Quotes, least: float) -> set[tuple[int, int | None]]:
    return {quotes.candidate(int(i)) for i in np.flatnonzero(quotes.price_s <= least * (1 + 1e-9))}
