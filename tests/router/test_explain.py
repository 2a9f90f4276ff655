"""An explanation says what the decision was, and every part of why."""

import random
from dataclasses import replace
from typing import Any

import pytest

from cluster.types import Placement, WorkerId
from router.decision import Attempt, PlacementRequest, place
from router.explain import explain, look_back, price_of
from router.policies.registry import RULES
from router.policies.rule import Rule
from router.policy import Disaggregate, Policy
from router.policy_settings import SessionAffinity
from tests.router.attempt_samples import draw_attempt
from tests.router.pool_samples import for_pool, load, snapshot

A, B, P = WorkerId("a"), WorkerId("b"), WorkerId("p")


def holding(num_tokens: int, num_ready: Any) -> PlacementRequest:
    """By name, until `for_pool`."""
    return PlacementRequest(num_prompt_tokens=num_tokens, max_tokens=64, num_ready=num_ready)


def attempt(
    request: PlacementRequest,
    decode: list[str],
    prefill: list[str] | None = None,
    **changes: object,
) -> Attempt:
    policy = replace(Policy(), **changes)  # type: ignore[arg-type]
    pool = snapshot([load(name) for name in decode], [load(name) for name in prefill or []])
    state, request = policy.begin(0), for_pool(request, pool)
    return Attempt(request, pool, state, policy, place(request, pool, state, policy)[0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("num", [30, pytest.param(3000, marks=pytest.mark.prove)])
def test_it_agrees_with_what_was_placed(rule: str, num: int) -> None:
    """Over pools of which anything may be true: the same choice, and terms that sum up to it."""
    draw = random.Random(rule)
    for _ in range(num):
        seen = draw_attempt(rule, draw)
        found = explain(seen, most=1000)
        assert (found.chosen is None) == (seen.decision is None)
        if seen.decision is None or found.chosen is None:
            continue
        assert found.chosen.placement == seen.decision.placement
        assert found.chosen.price_s == seen.decision.price_s
        assert found.chosen.num_cached_tokens == seen.decision.num_cached_tokens
        prices = [candidate.price_s for candidate in found.candidates]
        assert prices[1:] == sorted(prices[1:])
        assert prices[0] <= min(prices) + 1e-9 * abs(min(prices))
        for each in found.candidates:
            assert sum(s for _, s in each.terms) == pytest.approx(each.price_s, abs=1e-9)
        shown = {each.placement.decode for each in found.candidates}
        left_out = {each.worker for each in found.left_out}
        decoding = {load.worker for load in seen.snapshot.decode}
        assert decoding <= shown | left_out
        assert "gone" in left_out
        if rule == "priced" and seen.policy.disaggregate is Disaggregate.AUTO:
            computing = {each.placement.computing for each in found.candidates}
            assert {load.worker for load in seen.snapshot.loads} <= computing | left_out


def test_it_needs_no_columns() -> None:
    """Records keep rows only."""
    draw = random.Random(1)
    for _ in range(20):
        seen = draw_attempt("priced", draw)
        assert explain(seen.as_rows()) == explain(seen)


def test_the_cheapest_are_shown_and_the_others_counted() -> None:
    seen = attempt(
        PlacementRequest(num_prompt_tokens=500, max_tokens=9), [f"d{i}" for i in range(30)]
    )
    found = explain(seen, most=5)
    assert (len(found.candidates), found.num_candidates, found.num_tied) == (5, 30, 30)
    assert found.margin_s == 0.0
    assert "drawn" in found.sentence
    assert len(explain(seen, most=1).candidates) == 1


def test_the_sentence_names_the_term_that_decided() -> None:
    request = holding(1000, {A: 60})
    found = explain(attempt(request, ["a", "b"]))
    assert found.sentence.startswith("'a' (it computes) costs ")
    assert "less than 'b' (it computes after a fetch from 'a')" in found.sentence
    assert "of it by 'wait'." in found.sentence
    assert found.margin_s > 0


def test_whoever_was_left_out_is_told_with_the_reason() -> None:
    request = PlacementRequest(
        num_prompt_tokens=1000, max_tokens=64, excluded=frozenset({A}), session_worker=B
    )
    found = explain(attempt(request, ["a", "b"], ["p"], disaggregate=Disaggregate.NEVER))
    assert dict(found.left_out) == {
        P: "the policy disaggregates never",
        A: "failed this request before",
    }
    assert found.chosen is not None
    assert dict(found.chosen.terms)["session"] == -SessionAffinity().max_penalty_s
    nobody = explain(attempt(request._replace(excluded=frozenset({A, B})), ["a", "b"]))
    assert nobody.sentence == "Nobody could be chosen: no decode worker was left."


def test_who_is_too_small_to_decode_it_is_told_so() -> None:
    request = PlacementRequest(num_prompt_tokens=1000, max_tokens=64)
    pool = snapshot([load("a", num_total_tokens=1062), load("b")])
    policy = Policy()
    state = policy.begin(0)
    found = explain(Attempt(request, pool, state, policy, place(request, pool, state, policy)[0]))
    assert dict(found.left_out) == {
        A: "its cache of 1062 tokens is too small for the prompt and its answer"
    }


def test_who_would_wait_longer_than_an_idle_worker_needs_is_told_so() -> None:
    request = holding(1000, {P: 60})
    piled = load("p", backlog=((0.0, 9.0),), num_prompts=3)
    pool = snapshot([load("d", num_delayed=9)], [piled, load("q")])
    policy = Policy()
    state, request = policy.begin(0), for_pool(request, pool)
    seen = Attempt(request, pool, state, policy, place(request, pool, state, policy)[0])
    told = dict(explain(seen).left_out)[P]
    assert told == "its turn comes in 9,000 ms; an idle worker needs 22 ms"
    assert price_of(seen, Placement(decode=WorkerId("d"), prefill=P)) < 100.0


def test_who_may_decode_but_not_compute_is_told_so() -> None:
    request = PlacementRequest(num_prompt_tokens=1000, max_tokens=64)
    pool = snapshot([load("d", backlog=((0.0, 9.0),), num_prompts=3)], [load("p")])
    policy = Policy()
    state = policy.begin(0)
    seen = Attempt(request, pool, state, policy, place(request, pool, state, policy)[0])
    found = explain(seen)
    assert [each.placement for each in found.candidates] == [
        Placement(decode=WorkerId("d"), prefill=P)
    ]
    [(worker, reason)] = found.left_out
    assert worker == "d"
    assert reason.startswith("decodes, but does not compute: its turn comes in 9,000 ms; an idle")
    always = seen._replace(policy=replace(policy, disaggregate=Disaggregate.ALWAYS))
    assert explain(always).left_out == ()


@pytest.mark.parametrize("rule", [RULES["least_work"](), RULES["lmetric"]()])
def test_a_rule_that_does_not_price_tells_its_scores(rule: Rule[int]) -> None:
    request = PlacementRequest(num_prompt_tokens=100, max_tokens=4)
    found = explain(attempt(request, ["d"], ["p", "q"], rule=rule))
    assert found.chosen is not None
    [other] = {"p", "q"} - {found.chosen.placement.prefill}
    assert "which gives it" in dict(found.left_out)[WorkerId(other)]


def test_in_hindsight_a_prefix_that_was_gone_makes_the_choice_dear() -> None:
    request = holding(2000, {A: 120})
    busy = load("a", backlog=((0.0, 0.2),))
    policy, pool = Policy(), snapshot([busy, load("b")], s_per_byte=1e-3)
    state, request = policy.begin(0), for_pool(request, pool)
    decision, _ = place(request, pool, state, policy)
    seen = Attempt(request, pool, state, policy, decision)
    as_told = look_back(seen, num_cached=1920, num_tokens=64)
    as_lost = look_back(seen, num_cached=0, num_tokens=64)
    assert as_told is not None
    assert as_lost is not None
    assert as_told.regret_s == 0.0
    assert as_lost.regret_s > 0.1
    assert as_lost.best.placement.decode == "b"


def test_any_placement_has_a_price_whatever_the_rule() -> None:
    request = PlacementRequest(num_prompt_tokens=100, max_tokens=4)
    by_turns = attempt(request, ["a", "b"], rule=RULES["round_robin"]())
    prices = {price_of(by_turns, Placement(decode=name, prefill=None)) for name in (A, B)}
    assert len(prices) == 1
    assert max(prices) < 10


def test_it_agrees_where_only_those_that_can_win_were_priced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = random.Random(5)
    monkeypatch.setattr("router.price._FEW_PAIRS", 0)
    for _ in range(100):
        seen = draw_attempt("priced", draw)
        chosen = explain(seen).chosen
        assert (chosen and chosen.placement) == (seen.decision and seen.decision.placement)
