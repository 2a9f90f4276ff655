"""Invented traffic with known sharing: groups with a common prefix, conversations, fan-outs.

Seeded: the same arguments give the same trace.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

from cluster.errors import ConfigError
from cluster.types import GrainHash
from simulator.trace import MAX_REQUESTS, MAX_TOKENS, Trace, TraceRequest, grain_of


@dataclass(slots=True)
class Grains:
    """Draws grains that nobody else has."""

    grain: int
    numbers: Iterator[int] = field(default_factory=count)

    def fresh(self, num_tokens: int) -> tuple[GrainHash, ...]:
        return tuple(grain_of(next(self.numbers)) for _ in range(-(-num_tokens // self.grain)))


def shared_prefixes(
    *,
    num_requests: int,
    rate: float,
    num_groups: int,
    prefix_tokens: int,
    own_tokens: int,
    output_tokens: int,
    grain: int = 512,
    seed: int = 0,
) -> Trace:
    """Poisson arrivals at `rate` a second; each request has the prefix of a random group, and
    a question and an answer of about the given lengths (exponential)."""
    check_given(locals())
    chances = random.Random(seed)
    grains = Grains(grain)
    prefixes = [grains.fresh(prefix_tokens) for _ in range(num_groups)]
    arrival_s, requests = 0.0, []
    for _ in range(num_requests):
        arrival_s += chances.expovariate(rate)
        prefix = chances.choice(prefixes)
        own = around(own_tokens, chances)
        requests.append(
            TraceRequest(
                arrival_s=arrival_s,
                num_prompt_tokens=len(prefix) * grain + own,
                num_output_tokens=around(output_tokens, chances),
                grains=prefix + grains.fresh(own),
            )
        )
    return Trace(name="shared prefixes", grain=grain, requests=tuple(requests))


def conversations(
    *,
    num_sessions: int,
    rate: float,
    num_turns: int,
    system_tokens: int,
    turn_tokens: int,
    output_tokens: int,
    think_s: float,
    grain: int = 512,
    seed: int = 0,
) -> Trace:
    """Sessions begin at `rate` a second; each turn's prompt is all that was said before in it,
    after one system prompt for all, and comes about `think_s` after the turn before."""
    check_given(locals())
    chances = random.Random(seed)
    grains = Grains(grain)
    system = grains.fresh(system_tokens)
    begin_s, requests = 0.0, []
    for _ in range(num_sessions):
        begin_s += chances.expovariate(rate)
        arrival_s, said = begin_s, system
        for _ in range(1 + min(4 * num_turns, int(chances.expovariate(1 / num_turns)))):
            said += grains.fresh(around(turn_tokens, chances))
            output = around(output_tokens, chances)
            requests.append(
                TraceRequest(
                    arrival_s=arrival_s,
                    num_prompt_tokens=len(said) * grain,
                    num_output_tokens=output,
                    grains=said,
                )
            )
            said += grains.fresh(output)
            arrival_s += chances.expovariate(1 / think_s)
    requests.sort(key=lambda each: each.arrival_s)
    return Trace(name="conversations", grain=grain, requests=tuple(requests))


def fan_outs(
    *,
    num_prompts: int,
    num_siblings: int,
    shared_tokens: int,
    own_tokens: int,
    output_tokens: int,
    gap_s: float = 0.0,
    grain: int = 32,
) -> Trace:
    """Each prompt is asked by several siblings at once, which differ only at the end; the next
    prompt follows after `gap_s`."""
    check_given(locals())
    grains = Grains(grain)
    requests = []
    for index in range(num_prompts):
        shared = grains.fresh(shared_tokens)
        requests += [
            TraceRequest(
                arrival_s=index * gap_s,
                num_prompt_tokens=len(shared) * grain + own_tokens,
                num_output_tokens=output_tokens,
                grains=shared + grains.fresh(own_tokens),
            )
            for _ in range(num_siblings)
        ]
    return Trace(name="fan-outs", grain=grain, requests=tuple(requests))


def around(mean: int, chances: random.Random) -> int:
    """A length (exponential, at most eight times the mean)."""
    return max(1, min(8 * mean, round(chances.expovariate(1 / max(1, mean)))))


def check_given(given: Mapping[str, float]) -> None:
    """Raises ConfigError unless each argument, by its name, can be what it is called."""
    for name, value in given.items():
        least, most = 0.0, float(MAX_TOKENS)
        if name.startswith("num_"):
            least, most = 1, MAX_REQUESTS
        elif name in ("rate", "grain", "output_tokens", "think_s"):
            least = 1e-9
        elif name.endswith("_share"):
            most = 1
        if not least <= value <= most and name != "seed":
            raise ConfigError(f"'{name}' of invented traffic is {value}: {least:g} to {most:g}.")
