"""Invented traffic on which placement rules fail: each kind is a trap for some of them.

The defaults keep eight workers of the `70b-2gpu` fit some two thirds busy under a rule that does
not fall into it. Seeded, as all of `simulator/synthetic.py`.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from cluster.types import GrainHash
from simulator.synthetic import Grains, around, check_given, conversations, shared_prefixes
from simulator.trace import Trace, TraceRequest

_TAIL = 1.2  # exponent of heavy tails: the mean is finite, the variance is not
_LONGEST = 256  # times the shortest

# Everybody asks behind one huge prefix: whoever holds it is flooded, and to compute it once more,
# or to fetch it, takes long.
giant_prefix = partial(
    shared_prefixes,
    num_requests=600,
    rate=8.0,
    num_groups=1,
    prefix_tokens=65_536,
    own_tokens=400,
    output_tokens=100,
)
# Hardly anything comes, all of it behind a few prefixes: nobody waits, and what counts is who
# holds what.
trickle = partial(
    shared_prefixes,
    num_requests=300,
    rate=0.25,
    num_groups=12,
    prefix_tokens=8192,
    own_tokens=400,
    output_tokens=100,
)
# A session's next turn comes before its last one is computed: where its prefix will be is known,
# but nobody holds it yet.
overtaking_turns = partial(
    conversations,
    num_sessions=160,
    rate=0.9,
    num_turns=5,
    system_tokens=1024,
    turn_tokens=4096,
    output_tokens=100,
    think_s=0.3,
)


def bursts(
    *,
    num_bursts: int = 40,
    rate: float = 0.7,
    num_siblings: int = 24,
    shared_tokens: int = 16_384,
    own_tokens: int = 512,
    output_tokens: int = 50,
    grain: int = 512,
    seed: int = 0,
) -> Trace:
    """Fan-outs of about `num_siblings` at once come at `rate` a second: nobody holds the shared
    part yet, and the first choice decides for all."""
    check_given(locals())
    chances, grains = random.Random(seed), Grains(grain)
    begin_s, requests = 0.0, []
    for _ in range(num_bursts):
        begin_s += chances.expovariate(rate)
        shared = grains.fresh(shared_tokens)
        for _ in range(around(num_siblings, chances)):
            prompt = shared + grains.fresh(own_tokens)
            requests.append(_request(begin_s, prompt, output_tokens, grain))
    return Trace(name="bursts", grain=grain, requests=tuple(requests))


def hot_and_scan(
    *,
    num_requests: int = 900,
    rate: float = 5.0,
    num_hot: int = 40,
    hot_tokens: int = 16_384,
    scan_share: float = 0.5,
    scan_tokens: int = 8192,
    own_tokens: int = 400,
    output_tokens: int = 100,
    grain: int = 512,
    seed: int = 0,
) -> Trace:
    """Some prefixes are asked again and again; in between comes, once each, what only drives them
    out of the caches."""
    check_given(locals())
    chances, grains = random.Random(seed), Grains(grain)
    hot = [grains.fresh(hot_tokens) for _ in range(num_hot)]

    def prompt() -> tuple[GrainHash, ...]:
        if chances.random() < scan_share:
            return grains.fresh(scan_tokens)
        return chances.choice(hot) + grains.fresh(around(own_tokens, chances))

    prompts = (prompt() for _ in range(num_requests))
    return _poisson("hot and scan", prompts, rate, output_tokens, grain, chances)


def rotation(
    *,
    num_requests: int = 900,
    rate: float = 3.0,
    num_prefixes: int = 322,
    prefix_tokens: int = 8192,
    own_tokens: int = 400,
    output_tokens: int = 100,
    grain: int = 512,
    seed: int = 0,
) -> Trace:
    """Prefixes come in rotation: where they are slightly more than the caches hold, each is driven
    out right before its turn comes again. (By default, eight of 300,000 tokens.)"""
    check_given(locals())
    chances, grains = random.Random(seed), Grains(grain)
    prefixes = [grains.fresh(prefix_tokens) for _ in range(num_prefixes)]
    prompts = (
        prefixes[number % num_prefixes] + grains.fresh(around(own_tokens, chances))
        for number in range(num_requests)
    )
    return _poisson("rotation", prompts, rate, output_tokens, grain, chances)


def shift(
    *,
    num_requests: int = 1200,
    rate: float = 12.0,
    num_shifts: int = 3,
    num_groups: int = 16,
    prefix_tokens: int = 16_384,
    own_tokens: int = 400,
    output_tokens: int = 100,
    grain: int = 512,
    seed: int = 0,
) -> Trace:
    """A few of the prefixes are popular, the others rare; `num_shifts` times, all of them are
    replaced at once."""
    check_given(locals())
    chances, grains = random.Random(seed), Grains(grain)
    weights = [0.5**rank + 1 / num_groups for rank in range(num_groups)]
    num_phases = num_shifts + 1
    phases = [[grains.fresh(prefix_tokens) for _ in weights] for _ in range(num_phases)]

    def prompt(number: int) -> tuple[GrainHash, ...]:
        [prefix] = chances.choices(phases[number * num_phases // num_requests], weights)
        return prefix + grains.fresh(around(own_tokens, chances))

    prompts = map(prompt, range(num_requests))
    return _poisson("shift", prompts, rate, output_tokens, grain, chances)


def heavy_tail(
    *,
    num_requests: int = 1000,
    rate: float = 10.5,
    num_groups: int = 8,
    prefix_tokens: int = 2048,
    own_tokens: int = 500,
    output_tokens: int = 100,
    grain: int = 512,
    seed: int = 0,
) -> Trace:
    """Most prompts are short, some enormous (Pareto, from `own_tokens` on, behind one of a few
    prefixes): who is placed behind one of them waits for all of it."""
    check_given(locals())
    chances, grains = random.Random(seed), Grains(grain)
    prefixes = [grains.fresh(prefix_tokens) for _ in range(num_groups)]

    def prompt() -> tuple[GrainHash, ...]:
        times = min(chances.paretovariate(_TAIL), _LONGEST)
        return chances.choice(prefixes) + grains.fresh(round(own_tokens * times))

    prompts = (prompt() for _ in range(num_requests))
    return _poisson("heavy tail", prompts, rate, output_tokens, grain, chances)


def _poisson(
    name: str,
    prompts: Iterable[tuple[GrainHash, ...]],
    rate: float,
    output_tokens: int,
    grain: int,
    chances: random.Random,
) -> Trace:
    """They arrive at `rate` a second, and want answers of about `output_tokens`."""
    requests = tuple(
        _request(arrival_s, prompt, around(output_tokens, chances), grain)
        for prompt, arrival_s in zip(prompts, _moments(rate, chances), strict=False)
    )
    return Trace(name=name, grain=grain, requests=requests)


def _moments(rate: float, chances: random.Random) -> Iterator[float]:
    moment_s = 0.0
    while True:
        moment_s += chances.expovariate(rate)
        yield moment_s


def _request(
    arrival_s: float, prompt: tuple[GrainHash, ...], output_tokens: int, grain: int
) -> TraceRequest:
    return TraceRequest(
        arrival_s=arrival_s,
        num_prompt_tokens=len(prompt) * grain,
        num_output_tokens=output_tokens,
        grains=prompt,
    )


ADVERSARIAL: Final[Mapping[str, Callable[..., Trace]]] = MappingProxyType(
    {
        "giant_prefix": giant_prefix,
        "bursts": bursts,
        "hot_and_scan": hot_and_scan,
        "rotation": rotation,
        "shift": shift,
        "heavy_tail": heavy_tail,
        "trickle": trickle,
        "overtaking_turns": overtaking_turns,
    }
)
