"""Placement as tables: who gets a request, and what is predicted of it."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from cluster.types import WorkerId
from router import policy as policy_module
from router.load import Load
from router.policies.least_work import LeastWork
from router.policies.priced import backlog_of
from router.policies.registry import RULES
from router.policies.round_robin import RoundRobin
from router.policy import Decision, Disaggregate, PlacementRequest, Policy, PolicyState, place
from router.policy_settings import Order, QueueOrder, ServiceClass
from tests.router.pool_samples import load, snapshot

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
    decision, _ = place(request, pool, policy.begin(seed), policy)
    assert decision is not None
    return decision


def prompt(num_tokens: int, **changes: Any) -> PlacementRequest:
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
    ("a mostly cached one stays", prompt(2000, **cached(d=1990)), {}, None),
    ("beside many answers even a short one goes", prompt(60), {"num_running": 30}, P),
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
    siblings = prompt(2000, num_expected={A: 1900}, grain_tokens=1)
    assert decide(siblings, [load("a", **backlog(0.1)), load("b")]).placement.decode == "a"
    elsewhere = decide(siblings, [load("a", **backlog(9.0)), load("b")]).placement
    assert (elsewhere.decode, elsewhere.source) == ("b", None)


def test_the_weight_of_a_class_counts_its_own_waiting() -> None:
    """Where waiting costs little, reuse wins."""
    holder, other = load("a", **backlog(0.6)), load("b")
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
        decision, state = place(request, pool, state, policy)
        assert decision is not None
        assert decision.placement.decode not in excluded
        assert decision.num_prefill_tokens + decision.num_cached_tokens == 700
        local, _ = place(request, snapshot([load("a"), load("b")]), policy.begin(1), policy)
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
    decision = decide(prompt(1000, **cached(d=160, p=320)), [decode], [load("p", **backlog(0.05))])
    assert decision.placement.prefill == "p"
    assert decision.num_cached_tokens == 320
    assert decision.num_prefill_tokens == 680
    assert decision.wait_s == pytest.approx(0.05)
    assert decision.prefill_s == pytest.approx(0.002 + 680 * 2e-4)
    assert decision.ttft_s == pytest.approx(0.052 + 680 * 2e-4)
    assert decision.itl_s == pytest.approx(0.01 + 1e-7 * 2000 + 0.0005 * 5)


def test_the_last_prompt_token_is_never_counted_as_cached() -> None:
    assert decide(prompt(64, **cached(d=64)), [load("d")]).num_prefill_tokens == 1


def test_lambda_rises_with_the_backlog_of_those_that_compute_prompts() -> None:
    assert backlog_of(snapshot([load("a"), load("b")]).loads) == 1.0
    assert backlog_of(snapshot([load("a", num_prompts=3), load("b", num_prompts=3)]).loads) == 4.0
    behind = snapshot([load("a", num_prompts=9)], [load("p", num_prompts=2)])
    assert backlog_of(behind.loads) == 3.0


def test_leaving_out_who_cannot_win_changes_no_decision() -> None:
    """With many pairs only contenders are priced: the same minimum, drawn among the same ties."""
    rng, policy = random.Random(4), Policy()
    for case in range(60):
        spread = rng.choice((0.0, 0.01, 1.0))
        decode = [load(f"d{i}", **backlog(spread * rng.random())) for i in range(70)]
        prefill = [load(f"p{i}", **backlog(spread * rng.random())) for i in range(70)]
        pool = snapshot(decode, prefill, s_per_byte=rng.choice((1e-12, 1e-7)))
        holders = {rng.choice(pool.loads).worker: rng.randrange(200) for _ in range(5)}
        request = prompt(rng.choice((20, 4000)), num_ready=holders)
        state = policy.begin(case)
        some = policy_module.quote(request, pool, state, policy)
        every = policy_module.quote(request, pool, state, policy, all_of_them=True)
        least = every.price_s.min()
        assert some.price_s.min() == pytest.approx(least, rel=1e-12)
        assert _winners(some, least) == _winners(every, least)


def _winners(quotes: policy_module.Quotes, least: float) -> set[tuple[int, int | None]]:
    return {quotes.candidate(int(i)) for i in np.flatnonzero(quotes.price_s <= least * (1 + 1e-9))}
