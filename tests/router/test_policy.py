"""Placement as tables: who gets a request, and that every decision adds up."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.types import DecodeCost, PrefillCost, WorkerId
from router.policy import Decision, Disaggregate, PolicyConfig, PolicyState, place
from router.pool import PoolSnapshot, WorkerView
from router.price import PlacementRequest
from tests.router.pool_samples import view

CONFIG = PolicyConfig()
UNKNOWN = {"prefill_cost": PrefillCost(c0=0, c1=0), "decode_cost": DecodeCost(d0=0)}


def decide(
    request: PlacementRequest,
    decode: list[WorkerView],
    prefill: list[WorkerView] | None = None,
    *,
    disaggregate: Disaggregate = Disaggregate.AUTO,
    rotation: int = 0,
) -> Decision:
    snapshot = PoolSnapshot(decode=tuple(decode), prefill=tuple(prefill or ()))
    config = replace(CONFIG, disaggregate=disaggregate)
    decision, state = place(request, snapshot, PolicyState(rotation=rotation), config)
    assert decision is not None
    assert state.rotation == rotation + 1
    assert decision.price_s == pytest.approx(decision.candidates()[0].total_s)
    return decision


def prompt(num_tokens: int, **changes: Any) -> PlacementRequest:
    return PlacementRequest(num_prompt_tokens=num_tokens, max_tokens=64, **changes)


def cached(**num_tokens: int) -> dict[str, Any]:
    return {"num_cached_tokens": {WorkerId(name): count for name, count in num_tokens.items()}}


DECODE_TABLE = [
    ("the idle one", prompt(500), {}, {"num_running": 20}, "a"),
    ("the one with the prefix", prompt(500, **cached(b=480)), {}, {}, "b"),
    ("prefix against a short queue", prompt(2000, **cached(b=1900)), {}, {"num_waiting": 1}, "b"),
    (
        "a long queue outweighs a prefix",
        prompt(2000, **cached(b=1900)),
        {},
        {"num_waiting": 2, "num_queued_tokens": 20_000},
        "a",
    ),
    (
        "bookings weigh like a queue",
        prompt(2000, **cached(b=1900)),
        {},
        {"num_booked_prompts": 2, "num_booked_tokens": 20_000},
        "a",
    ),
    ("room", prompt(500), {}, {"num_free_tokens": 100, "num_running": 1}, "a"),
    (
        "a free sequence",
        prompt(500),
        {"num_running": 2},
        {"max_sequences": 1, "num_running": 1},
        "a",
    ),
    ("the faster", prompt(500), {}, {"prefill_cost": PrefillCost(c0=0.002, c1=1e-4)}, "b"),
    ("unknown costs: least loaded", prompt(500), UNKNOWN, {**UNKNOWN, "num_running": 5}, "a"),
    ("unknown costs: prefix", prompt(500, **cached(b=400)), UNKNOWN, UNKNOWN, "b"),
    (
        "an excluded worker never",
        prompt(500, excluded=frozenset({"a"})),
        {},
        {"num_waiting": 50},
        "b",
    ),
]


@pytest.mark.parametrize(
    ("request_", "a", "b", "expected"),
    [row[1:] for row in DECODE_TABLE],
    ids=[row[0] for row in DECODE_TABLE],
)
def test_without_prefill_workers_the_cheapest_decode_worker_is(
    request_: PlacementRequest, a: dict[str, Any], b: dict[str, Any], expected: str
) -> None:
    placement = decide(request_, [view("a", **a), view("b", **b)]).placement
    assert (placement.decode, placement.prefill) == (expected, None)


SPLIT_TABLE = [
    ("a short prompt stays", prompt(12), {"num_running": 0}, None),
    ("a long one goes", prompt(2000), {"num_running": 0}, "p"),
    ("a mostly cached one stays", prompt(2000, **cached(d=1990)), {"num_running": 0}, None),
    ("beside many answers even a short one goes", prompt(60), {"num_running": 30}, "p"),
    ("cached on the prefill worker: goes there", prompt(2000, **cached(p=1900)), {}, "p"),
]


@pytest.mark.parametrize(
    ("request_", "decode", "expected"),
    [row[1:] for row in SPLIT_TABLE],
    ids=[row[0] for row in SPLIT_TABLE],
)
def test_prefill_is_handed_over_when_that_costs_less(
    request_: PlacementRequest, decode: dict[str, Any], expected: str | None
) -> None:
    assert decide(request_, [view("d", **decode)], [view("p")]).placement.prefill == expected


def test_a_backlog_at_prefill_brings_prompts_back_to_an_idle_decode_worker() -> None:
    busy = view("p", num_waiting=20, num_queued_tokens=40_000)
    assert decide(prompt(2000), [view("d")], [busy]).placement.prefill is None


def test_a_queue_drains_while_no_report_comes() -> None:
    fresh = view("a", num_waiting=2, num_queued_tokens=1000)
    aged = view("b", num_waiting=2, num_queued_tokens=1000, reported_at=-0.2)
    assert decide(prompt(500), [fresh, aged]).placement.decode == "b"


@pytest.mark.parametrize(
    ("mode", "num_tokens", "expected"),
    [
        (Disaggregate.ALWAYS, 4, "p"),
        (Disaggregate.NEVER, 2000, None),
        (Disaggregate.AUTO, 2000, "p"),
    ],
)
def test_the_operator_may_fix_the_mode(
    mode: Disaggregate, num_tokens: int, expected: str | None
) -> None:
    decision = decide(prompt(num_tokens), [view("d")], [view("p")], disaggregate=mode)
    assert decision.placement.prefill == expected


def test_always_prefills_locally_when_no_prefill_worker_serves() -> None:
    decision = decide(prompt(2000), [view("d")], disaggregate=Disaggregate.ALWAYS)
    assert decision.placement.prefill is None


def test_a_prompt_that_can_never_fit_a_prefill_worker_is_not_sent_there() -> None:
    small = view("p", num_total_tokens=1000)
    assert decide(prompt(2000), [view("d")], [small]).placement.prefill is None


def test_equals_take_turns() -> None:
    chosen = [
        decide(prompt(500), [view("a"), view("b"), view("c")], rotation=turn).placement.decode
        for turn in range(6)
    ]
    assert chosen == ["a", "b", "c", "a", "b", "c"]


def test_nobody_left_is_no_decision() -> None:
    request = prompt(5, excluded=frozenset({WorkerId("a")}))
    decision, state = place(
        request, PoolSnapshot(decode=(view("a"),)), PolicyState(rotation=3), CONFIG
    )
    assert decision is None
    assert state == PolicyState(rotation=3)


def test_a_burst_spreads_by_its_bookings() -> None:
    """Placed at one instant, between two reports: nobody is herded."""
    booked = {"a": 0, "b": 0, "c": 0}
    for turn in range(30):
        views = [
            view(
                name,
                num_booked_prompts=count,
                num_booked_tokens=500 * count,
                num_booked_sequences=count,
                num_booked_context_tokens=500 * count,
            )
            for name, count in booked.items()
        ]
        booked[decide(prompt(500), views, rotation=turn).placement.decode] += 1
    assert booked == {"a": 10, "b": 10, "c": 10}


def test_a_decision_explains_itself_term_by_term() -> None:
    decision = decide(prompt(1000, **cached(d=160, p=320)), [view("d", num_running=4)], [view("p")])
    candidates = {c.placement.prefill: c for c in decision.candidates()}
    assert set(candidates) == {None, WorkerId("p")}
    local, remote = candidates[None].terms, candidates[WorkerId("p")].terms
    assert local.prefill_s == pytest.approx(0.002 + 840 * 2e-4)
    assert local.interference_s == pytest.approx(local.prefill_s * 5)
    assert local.transfer_s == 0
    assert remote.prefill_s == pytest.approx(0.002 + 680 * 2e-4)
    assert remote.interference_s == 0
    assert remote.transfer_s == pytest.approx(0.005 + 840 * 2048 / 1e9)
    assert remote.decode_s == local.decode_s
    assert decision.placement.prefill == "p"
    assert decision.num_cached_tokens == 320
    assert decision.num_prefill_tokens == 680


def test_the_last_prompt_token_is_never_counted_as_cached() -> None:
    assert decide(prompt(64, **cached(d=64)), [view("d")]).num_prefill_tokens == 1


def test_the_load_factor_rises_with_the_backlog() -> None:
    idle = decide(prompt(500), [view("a"), view("b")])
    busy = decide(prompt(500), [view("a", num_waiting=3), view("b", num_booked_prompts=3)])
    assert (idle.load_factor, busy.load_factor) == (1.0, 4.0)
