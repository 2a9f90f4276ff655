"""The same traffic twice: as prompts for a real cluster, and as a trace for the simulator."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from cluster.block_hash import HASH_BYTES, grain_hashes
from cluster.types import GrainHash
from simulator.trace import Trace, TraceRequest

GRAIN = 16  # tokens; blocks are as long
FIRST_ID, LAST_ID = 32, 200  # plain tokens of any model


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRequest:
    """One request, known before anything is sent."""

    arrival_s: float
    prompt: tuple[int, ...]
    num_output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much there is of everything; times are in seconds."""

    num_requests: int = 120
    rate: float = 8.0  # requests a second, on average
    prompt_tokens: int = 400
    output_tokens: int = 16
    num_siblings: int = 8


Workload = Callable[[Sizes, random.Random], list[PlannedRequest]]


def cold(sizes: Sizes, chances: random.Random) -> list[PlannedRequest]:
    """Prompts that share nothing, by Poisson."""
    arrival_s, asked = 0.0, []
    for _ in range(sizes.num_requests):
        arrival_s += chances.expovariate(sizes.rate)
        prompt = _draw(_about(sizes.prompt_tokens, chances), chances)
        num_output = _about(sizes.output_tokens, chances)
        asked.append(PlannedRequest(arrival_s=arrival_s, prompt=prompt, num_output=num_output))
    return asked


def conversations(sizes: Sizes, chances: random.Random) -> list[PlannedRequest]:
    """Sessions of four turns behind one of three system prompts; a turn's prompt is all before
    it, an invented answer included, and comes a second or two later."""
    num_turns, tokens = 4, sizes.prompt_tokens
    systems = [_draw(tokens // 2, chances) for _ in range(3)]
    begin_s, asked = 0.0, []
    for _ in range(sizes.num_requests // num_turns):
        begin_s += chances.expovariate(sizes.rate / num_turns)
        arrival_s, said = begin_s, chances.choice(systems)
        for _ in range(num_turns):
            said += _draw(_about(tokens // 5, chances), chances)
            num_output = _about(sizes.output_tokens, chances)
            asked.append(PlannedRequest(arrival_s=arrival_s, prompt=said, num_output=num_output))
            said += _draw(num_output, chances)
            arrival_s += 0.5 + chances.expovariate(1.0)
    return sorted(asked, key=lambda each: each.arrival_s)


def bursts(sizes: Sizes, chances: random.Random) -> list[PlannedRequest]:
    """Fan-outs: siblings that come at once and differ in their last eighth only."""
    arrival_s, asked = 0.0, []
    for _ in range(sizes.num_requests // sizes.num_siblings):
        arrival_s += chances.expovariate(sizes.rate / sizes.num_siblings)
        shared = _draw(sizes.prompt_tokens * 7 // 8, chances)
        for _ in range(sizes.num_siblings):
            prompt = shared + _draw(sizes.prompt_tokens // 8, chances)
            num_output = _about(sizes.output_tokens, chances)
            asked.append(PlannedRequest(arrival_s=arrival_s, prompt=prompt, num_output=num_output))
    return asked


def herd(sizes: Sizes, chances: random.Random) -> list[PlannedRequest]:
    """All at once behind one long prefix that nobody holds; the last grain is each one's own."""
    shared = _draw(sizes.prompt_tokens - GRAIN, chances)
    return [
        PlannedRequest(
            arrival_s=0.0,
            prompt=shared + _draw(GRAIN, chances),
            num_output=_about(sizes.output_tokens, chances),
        )
        for _ in range(sizes.num_requests)
    ]


def herd_behind_one(sizes: Sizes, chances: random.Random) -> list[PlannedRequest]:
    """The same, a while after the first: one worker holds the prefix when the others come."""
    first, *others = herd(sizes, chances)
    return [replace(first, num_output=1), *later(others, 1.0 / sizes.rate)]


WORKLOADS: Mapping[str, Workload] = {
    "cold": cold,
    "conversations": conversations,
    "bursts": bursts,
    "herd": herd,
    "herd_behind_one": herd_behind_one,
}


def later(asked: Sequence[PlannedRequest], by_s: float) -> list[PlannedRequest]:
    return [replace(each, arrival_s=each.arrival_s + by_s) for each in asked]


def as_trace(name: str, asked: Sequence[PlannedRequest], hash_grain: int) -> Trace:
    requests = (
        TraceRequest(
            arrival_s=each.arrival_s,
            num_prompt_tokens=len(each.prompt),
            num_output_tokens=each.num_output,
            max_output_tokens=each.num_output,
            grains=_grains(each.prompt, hash_grain),
        )
        for each in asked
    )
    return Trace(name=name, grain=hash_grain, requests=tuple(requests))


def _grains(prompt: Sequence[int], hash_grain: int) -> tuple[GrainHash, ...]:
    whole = grain_hashes(b"", prompt, hash_grain)
    if len(prompt) % hash_grain:  # the last one is partial, and nobody else's
        whole.append(GrainHash(blake2b(repr(prompt).encode(), digest_size=HASH_BYTES).digest()))
    return tuple(whole)


def _draw(num: int, chances: random.Random) -> tuple[int, ...]:
    return tuple(chances.randrange(FIRST_ID, LAST_ID) for _ in range(num))


def _about(mean: int, chances: random.Random) -> int:
    """From half to one and a half times as many."""
    return max(1, round(mean * chances.uniform(0.5, 1.5)))
