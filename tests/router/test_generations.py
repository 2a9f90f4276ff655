"""Policies at work, one after another and side by side, without a router around them."""

import random
from collections.abc import Iterator

import pytest

from cluster.types import GrainHash, LoadReport, PrefillCost, Role, RoutingHints, WorkerId
from router.decision import Decision
from router.flight import Ask, Ended, Left
from router.index import PrefixIndex
from router.placer import Placer
from router.policy import Policy
from router.policy_settings import ServiceClass
from router.pool import Pool
from router.records import Fate, Records
from router.rollout.generations import Generations, LoadedRollout
from router.rollout.rollout import Offer, Rollout
from tests.router.policy_texts import offer
from tests.router.pool_samples import member

NAMES = ("a", "b", "c", "p", "q")
SHADOW = "  shadow: {sample: 100%, spec: {placement: {rule: lmetric}}}\n"
RULES = ("priced", "round_robin", "power_of_two", "random", "preble_e2")


def loaded(rollout: Rollout, *offers: Offer) -> LoadedRollout:
    documents = {each.text: each.document for each in offers}
    canary = documents[rollout.canary.text] if rollout.canary else None
    return LoadedRollout(rollout, documents[rollout.active.text], canary)


def placer(first: Offer) -> Placer:
    generations = Generations(Policy(), seed=7)
    generations.adopt(loaded(Rollout.begin(first, 0.0), first))
    made = Placer(Pool(), PrefixIndex(1 << 20), 16, generations, Records(1 << 20))
    for name in NAMES:
        joined = member(name, Role.PREFILL if name in "pq" else Role.DECODE)
        made.pool.join(joined)
        report(made, name, LoadReport(num_free_blocks=900, num_blocks=1000))
    return made


def report(to: Placer, name: str, load: LoadReport) -> None:
    to.pool.report(WorkerId(name), member(name).worker.incarnation, load, 0.0)


def ask(number: int, **changes: object) -> Ask:
    hashes = [GrainHash(bytes([number % 7, depth]) * 8) for depth in range(12)]
    values = {
        "request_id": f"r{number}",
        "hashes": hashes,
        "num_prompt_tokens": 200,
        "max_tokens": 40,
        "arrived_at": 0.0,
    }
    return Ask(**{**values, **changes})  # type: ignore[arg-type]


def life(of: Placer, seed: int) -> Iterator[Decision]:
    """Requests that come and go in an order drawn at random, and reports between them."""
    draw, open_ = random.Random(seed), list[str]()
    for number in range(150):
        now = 0.001 * number
        if draw.random() < 0.3:
            cost = PrefillCost(c0=0.001, c1=draw.choice([1e-4, 3e-4]))
            load = LoadReport(
                num_free_blocks=draw.randrange(1000),
                num_blocks=1000,
                num_running=draw.randrange(9),
                backlog=((0.0, draw.random()),),
                prefill_cost=cost,
            )
            report(of, draw.choice(NAMES), load)
        decision = of.place(ask(number), now)
        assert decision is not None
        yield decision
        open_.append(f"r{number}")
        if draw.random() < 0.7:
            request_id = open_.pop(draw.randrange(len(open_)))
            of.told(request_id, Ended(Fate.FINISHED, num_tokens=3), now)
    of.check()


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_placements_with_and_without_a_shadow_are_the_same(rule: str) -> None:
    more = f"  placement: {{rule: {rule}}}\n"
    alone, beside = placer(offer(more=more)), placer(offer(more=more + SHADOW))
    assert list(life(alone, 3)) == list(life(beside, 3))
    shadow = beside.generations.active.shadow
    assert shadow is not None
    assert shadow.num_evaluated > 90
    assert shadow.num_failed == 0
    assert shadow.num_disagreed > 0
    assert alone.generations.active.state == beside.generations.active.state


def test_who_is_in_flight_keeps_the_policy_that_placed_it() -> None:
    one, two = (offer(more=f"  classes: [{{name: c, ttft: {s}s}}]\n") for s in (5, 9))
    of = placer(one)
    first = of.place(ask(1), 0.0)
    rollout = Rollout.begin(one, 0.0).offered(two, 1.0)
    of.generations.adopt(loaded(rollout, one, two))
    of.told("r1", Left(), 1.0)
    of.told("r1", Left(), 1.0)  # twice is once
    of.check()
    again = of.place(ask(1), 0.0, frozenset({WorkerId("a")}))
    fresh = of.place(ask(2), 0.0)
    assert first is not None
    assert again is not None
    assert fresh is not None
    assert [round(each.due_s) for each in (first, again, fresh)] == [5, 5, 9]
    of.told("r1", Ended(Fate.FINISHED), 2.0)
    later = of.place(ask(1), 0.0)  # the same id is another request now
    assert later is not None
    assert round(later.due_s) == 9


def test_the_same_rule_goes_on_with_what_it_has_learnt() -> None:
    one, two = offer(1.0), offer(2.0)
    other = offer(3.0, more="  placement: {rule: round_robin}\n")
    of = placer(one)
    of.place(ask(1), 0.0)
    learnt = of.generations.active.state
    rollout = Rollout.begin(one, 0.0).offered(two, 1.0)
    of.generations.adopt(loaded(rollout, one, two))
    assert of.generations.active.state == learnt
    rollout = rollout.offered(other, 2.0)
    of.generations.adopt(loaded(rollout, two, other))
    assert of.generations.active.state != learnt


@pytest.mark.slow
def test_a_canary_gets_its_share_and_both_sides_are_counted_from_its_beginning() -> None:
    one, two = offer(1.0), offer(2.0, share=0.2)
    of = placer(one)
    for number in range(50):
        of.place(ask(number), 0.0)
    rollout = Rollout.begin(one, 0.0).offered(two, 1.0)
    of.generations.adopt(loaded(rollout, one, two))
    for number in range(50, 1050):
        of.place(ask(number), 0.0)
    active, canary = of.generations.active, of.generations.canary
    assert canary is not None
    assert 150 < canary.on_trial.num_placed < 250
    assert active.on_trial.num_placed + canary.on_trial.num_placed == 1000
    assert active.since_start.num_placed == 50 + active.on_trial.num_placed
    of.generations.adopt(loaded(rollout.promoted(2.0, "good"), one, two))
    assert (of.generations.active, of.generations.canary) == (canary, None)


def test_sessions_of_one_key_stay_together_and_tenants_do_not_share_them() -> None:
    one, two = offer(1.0), offer(2.0, share=0.5)
    of = placer(one)
    of.generations.adopt(loaded(Rollout.begin(one, 0.0).offered(two, 1.0), one, two))
    sides: dict[tuple[str, str], set[int]] = {}
    for number in range(400):
        tenant, key = f"t{number % 2}", f"s{number % 20}"
        hints = RoutingHints(session_key=key)
        of.place(ask(number, tenant=tenant, hints=hints), 0.0)
        record = of.record(f"r{number}")
        assert record is not None
        sides.setdefault((tenant, key), set()).add(record.live.number)
    assert all(len(side) == 1 for side in sides.values())
    assert {number for side in sides.values() for number in side} == {1, 2}


def test_a_policy_that_no_document_gave_places_too() -> None:
    """As the simulator's."""
    generations = Generations(Policy(classes=(ServiceClass(name="c", ttft_s=3.0),)))
    assert generations.choose("any") is generations.active
    assert generations.active.number == 0
