"""Invented traffic for planners: a trace made even, and a day in small."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from math import cos, pi

from cluster.errors import ConfigError
from cluster.types import GrainHash
from simulator.synthetic import Grains, check_given
from simulator.trace import Trace, TraceRequest

_LAP_BYTES = 8  # of a grain's hash, which ids of traces leave free


def even(trace: Trace, *, duration_s: float, rate: float, seed: int = 0) -> Trace:
    """The requests of a trace in their order, again and again, coming by Poisson at `rate`. What
    comes again shares nothing with what came before. Raises ConfigError."""
    check_given({"duration_s": duration_s, "rate": rate})
    if not trace.requests:
        raise ConfigError(f"The trace {trace.name} holds no requests.")
    chances, requests, at_s = random.Random(seed), [], 0.0
    for each in _laps(trace.requests):
        at_s += chances.expovariate(rate)
        if at_s > duration_s:
            break
        requests.append(replace(each, arrival_s=at_s))
    return replace(trace, requests=tuple(requests))


def day(
    *,
    day_s: float,
    most_rate: float,
    prompt_tokens: int,
    output_tokens: int,
    num_bursts: int,
    burst_s: float,
    ratio: float = 10.0,
    burst_factor: float = 3.0,
    grain: int = 512,
    seed: int = 0,
) -> Trace:
    """From its least rate to `most_rate`, which is `ratio` times as much, and back, as a sine; in
    between, at moments that nobody knows, `num_bursts` times for `burst_s` `burst_factor` times as
    many. Lengths: gamma, prompts that share nothing."""
    check_given(locals())
    chances, grains = random.Random(seed), Grains(grain)
    bursts = [chances.uniform(0.0, day_s - burst_s) for _ in range(num_bursts)]
    middle, swing = 0.5 * (1.0 + 1.0 / ratio), 0.5 * (1.0 - 1.0 / ratio)
    requests, at_s, most = [], 0.0, burst_factor * most_rate
    while (at_s := at_s + chances.expovariate(most)) < day_s:
        rate = most_rate * (middle - swing * cos(2 * pi * at_s / day_s))
        if any(begin_s <= at_s < begin_s + burst_s for begin_s in bursts):
            rate *= burst_factor
        if chances.random() * most > rate:
            continue
        num_prompt = max(1, round(chances.gammavariate(4.0, prompt_tokens / 4.0)))
        requests.append(
            TraceRequest(
                arrival_s=at_s,
                num_prompt_tokens=num_prompt,
                num_output_tokens=max(1, round(chances.gammavariate(2.0, output_tokens / 2.0))),
                grains=grains.fresh(num_prompt),
            )
        )
    return Trace(name="a day", grain=grain, requests=tuple(requests))


def _laps(requests: Sequence[TraceRequest]) -> Iterator[TraceRequest]:
    for lap in count():
        mark = lap.to_bytes(_LAP_BYTES, "big")
        for each in requests:
            grains = tuple(GrainHash(mark + grain[_LAP_BYTES:]) for grain in each.grains)
            yield replace(each, grains=grains)
