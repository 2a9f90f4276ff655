"""Traffic outside of the traps that ship, found by a search for cells in which the default is a bad
choice: kept here, so that a change of it is judged by them, too."""

import random
from collections.abc import Callable, Mapping
from functools import partial

from cluster.types import GrainHash
from simulator.synthetic import Grains, around
from simulator.trace import Trace, TraceRequest

GRAIN = 512
NUM_OUTPUT_TOKENS = 50


def giants_amid_short(
    seed: int, *, num_prefixes: int, share: float, rate: float, short_shared: int = 0
) -> Trace:
    """`share` of the prompts come behind one of a few prefixes of 64k tokens; the others are short,
    and share `short_shared` tokens. `rate` is in requests a second."""
    chance, grains = random.Random(seed), Grains(GRAIN)
    prefixes = [grains.fresh(65_536) for _ in range(num_prefixes)]
    common = grains.fresh(short_shared) if short_shared else ()
    requests, at = [], 0.0
    for _ in range(1200):
        at += chance.expovariate(rate)
        if chance.random() < share:
            prompt = (*chance.choice(prefixes), *grains.fresh(around(400, chance)))
        else:
            prompt = (*common, *grains.fresh(around(2000, chance)))
        requests.append(_request(at, prompt))
    return _trace("giants", requests)


def agents(seed: int, *, rate: float, fan: int = 1) -> Trace:
    """A long task, then many short steps after each other's answer; three in ten are asked `fan`
    times at once. `rate` is in tasks a second."""
    chance, grains = random.Random(seed), Grains(GRAIN)
    system = grains.fresh(8192)
    requests, begins = [], 0.0
    for _ in range(120):
        begins += chance.expovariate(rate)
        at, said = begins, (*system, *grains.fresh(around(8000, chance)))
        for _ in range(1 + int(chance.expovariate(1 / 12))):
            said = (*said, *grains.fresh(around(1000, chance)))
            asked = range(fan if chance.random() < 0.3 else 1)
            prompts = [(*said, *grains.fresh(around(300, chance))) for _ in asked]
            requests += [_request(at, prompt) for prompt in prompts]
            at += chance.expovariate(1.0)
    return _trace("agents", requests)


SEARCHED: Mapping[str, Callable[[int], Trace]] = {
    "six giants amid short": partial(giants_amid_short, num_prefixes=6, share=0.5, rate=12.0),
    "three giants, short ones share": partial(
        giants_amid_short, num_prefixes=3, share=0.3, rate=14.0, short_shared=4096
    ),
    "agents": partial(agents, rate=0.7),
    "agents that fan out": partial(agents, rate=0.7, fan=3),
}


def _request(at: float, prompt: tuple[GrainHash, ...]) -> TraceRequest:
    return TraceRequest(
        arrival_s=at,
        grains=prompt,
        num_prompt_tokens=GRAIN * len(prompt),
        num_output_tokens=NUM_OUTPUT_TOKENS,
    )


def _trace(name: str, requests: list[TraceRequest]) -> Trace:
    ordered = sorted(requests, key=lambda each: each.arrival_s)
    return Trace(name=name, grain=GRAIN, requests=tuple(ordered))
