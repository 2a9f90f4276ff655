"""Decisions over pools drawn at random, of which anything may be true."""

import random

from cluster.types import Role, WorkerId
from router.decision import Attempt, PlacementRequest, place
from router.load import Load
from router.pair_costs import PairCosts
from router.policies.registry import RULES
from router.policy import Disaggregate, Policy
from router.policy_settings import Order, QueueOrder, ServiceClass
from router.pool import PoolSnapshot, Refusal
from tests.router.pool_samples import load, snapshot


def draw_attempt(rule: str, draw: random.Random, *, num_workers: int = 5) -> Attempt:
    prefill = [_load(f"p{i}", draw) for i in range(draw.randrange(num_workers))]
    decode = [_load(f"d{i}", draw) for i in range(1 + draw.randrange(num_workers))]
    pool = _with_links(snapshot(decode, prefill), draw)
    names = [load.worker for load in pool.loads]
    policy = Policy(
        rule=RULES[rule](),
        disaggregate=draw.choice(list(Disaggregate)),
        queue=QueueOrder(order=draw.choice(list(Order)), stretch=draw.choice([0.0, 1.0, 4.0])),
    )
    ready = {name: draw.randrange(60) for name in names if draw.random() < 0.5}
    request = PlacementRequest(
        num_prompt_tokens=draw.randrange(1, 2000),
        max_tokens=draw.randrange(1, 500),
        num_choices=draw.choice([1, 1, 3]),
        service_class=ServiceClass(name="c", weight=draw.choice([0.5, 1.0, 3.0])),
        age_s=draw.random(),
        num_ready=pool.loads.column_of(ready),
        num_held=pool.loads.column_of(
            {name: num + draw.randrange(9) for name, num in ready.items()}
        ),
        excluded=frozenset(draw.sample(names, draw.choice([0, 0, 0, 1]))),
        session_worker=draw.choice([None, *names]),
    )
    state = policy.begin(draw.randrange(1 << 40))
    decision, _ = place(request, pool, state, policy)
    return Attempt(request, pool, state, policy, decision)


def _load(name: str, draw: random.Random) -> Load:
    if draw.random() < 0.3:
        return load(name)  # some are alike: ties
    num_waiting, num_running = draw.randrange(5), draw.randrange(40)
    return load(
        name,
        backlog=((0.0, draw.random()), (3.0, 1.0 + draw.random())),
        booked_s=draw.choice([0.0, draw.random()]),
        num_waiting=num_waiting,
        num_running=num_running,
        num_prompts=num_waiting,
        num_context_tokens=500 * num_running,
        num_free_tokens=draw.choice([0, 1000, 100_000]),
        num_unused_tokens=draw.choice([0, 1000]),
        num_total_tokens=draw.choice([1500, 100_000]),
        max_sequences=draw.choice([8, 64]),
        c1=draw.choice([1e-4, 4e-4]),
    )


def _with_links(pool: PoolSnapshot, draw: random.Random) -> PoolSnapshot:
    costs = PairCosts(pool.costs.setup_s.copy(), pool.costs.s_per_byte.copy())
    costs.s_per_byte[...] *= draw.choice([1.0, 1000.0])
    costs.setup_s[0, -1] = draw.random()
    refused = (Refusal(worker=WorkerId("gone"), role=Role.DECODE, reason="draining"),)
    return pool._replace(costs=costs, refused=refused)
