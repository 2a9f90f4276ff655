"""What the router costs: a decision, a hashed prompt, a followed event, a whole request.

    python -m bench.router [--decisions 600] [--requests 600] [--json]

A decision is match + price + choose, over the pool as it is then; hashing and tokenising come
before it, and are told apart. Processor time of a request is that of the router's process, beside
a bare grpc.aio server that echoes the same answer in the same run.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

from bench.decision_setting import DecisionSetting, Deployment
from bench.machine import describe
from bench.router_events import events_per_s, snapshot_per_s
from bench.router_processes import SHIPPED
from bench.router_requests import RequestCosts, request_costs
from cluster.block_hash import grain_hashes
from cluster.tokenizer import Tokenizer
from router.decision import PlacementRequest, place, quote
from router.flight import Ask, Left
from router.pool import PoolSnapshot

SMALL = DecisionSetting(num_tokens=4096, grain=16, num_prefill=32, num_decode=32)
LARGE = DecisionSetting(num_tokens=100_000, grain=32, num_prefill=500, num_decode=500)
TEXT = "The gate opens, water falls through the pipe, and the turbine begins to turn. "


@dataclass(frozen=True, slots=True)
class Time:
    """Microseconds."""

    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Time":
        ordered = sorted(seconds)
        return cls(1e6 * ordered[len(ordered) // 2], 1e6 * ordered[int(0.99 * len(ordered))])


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionTimes:
    setting: DecisionSetting
    snapshot: Time  # the pool frozen, what was reported and placed since the last one put in
    match: Time  # what each worker holds, and what it will hold
    price: Time
    choose: Time
    decision: Time  # all of these
    placed: Time  # with what a router does besides: bookings, expectations, the record


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    machine: str
    clock: str
    decisions: list[DecisionTimes]
    hashing_us: Time  # 100,000 tokens, grains of 32
    tokenising_us: Time  # about 4,096 tokens of text
    events_per_s: float  # grains, from bytes to entries; half stored, half evicted, 32 a change
    snapshot_per_s: float
    requests: RequestCosts


Clock = Callable[[], float]


def decision_times(setting: DecisionSetting, num: int, clock: Clock) -> DecisionTimes:
    deployment = Deployment(setting)
    parts: dict[str, list[float]] = {}
    open_ids: list[str] = []
    for _ in range(num):
        deployment.step()
        for name, seconds in _timed_parts(deployment, deployment.ask(), clock).items():
            parts.setdefault(name, []).append(seconds)
        deployment.step()
        ask = deployment.ask()
        began = clock()
        deployment.placer.place(ask, deployment.now)
        parts.setdefault("placed", []).append(clock() - began)
        open_ids.append(ask.request_id)
        if len(open_ids) > setting.num_prefill:
            deployment.placer.told(open_ids.pop(0), Left(), deployment.now)
    times = {name: Time.of(seconds) for name, seconds in parts.items()}
    return DecisionTimes(setting=setting, **times)


def _timed_parts(deployment: Deployment, ask: Ask, clock: Clock) -> dict[str, float]:
    placer, now = deployment.placer, deployment.now
    live = placer.generations.active
    began = clock()
    snapshot = placer.pool.snapshot(now)
    frozen = clock()
    request = _request(deployment, ask, snapshot)
    matched = clock()
    place(request, snapshot, live.state, live.policy)
    placed = clock()
    price_s = _price_s(request, snapshot, deployment, clock)
    return {
        "match": matched - frozen,
        "snapshot": frozen - began,
        "price": price_s,
        "choose": max(0.0, placed - matched - price_s),
        "decision": placed - began,
    }


def _request(deployment: Deployment, ask: Ask, snapshot: PoolSnapshot) -> PlacementRequest:
    placer, loads = deployment.placer, snapshot.loads
    ends = placer.index.match(ask.hashes)
    num_ready = placer.index.numbering.column(ends, loads.positions)
    expected = placer.books.speculation.match(ask.hashes, ends, deployment.now)
    return PlacementRequest(
        num_prompt_tokens=ask.num_prompt_tokens,
        max_tokens=ask.max_tokens,
        grain_tokens=deployment.setting.grain,
        num_ready=num_ready,
        num_held=loads.column_of(expected, num_ready) if expected else None,
    )


def _price_s(
    request: PlacementRequest, snapshot: PoolSnapshot, deployment: Deployment, clock: Clock
) -> float:
    live = deployment.placer.generations.active
    began = clock()
    quote(request, snapshot, live.state, live.policy)
    return clock() - began


def hashing_times(num: int, clock: Clock) -> Time:
    ids = [(31 * number) % 150_000 for number in range(LARGE.num_tokens)]
    return Time.of([_seconds(lambda: grain_hashes(b"key", ids, 32), clock) for _ in range(num)])


def tokenising_times(num: int, clock: Clock) -> Time:
    tokenizer = Tokenizer.load(SHIPPED)
    text = TEXT
    while len(tokenizer.encode(text)) < SMALL.num_tokens:
        text += TEXT
    return Time.of([_seconds(lambda: tokenizer.encode(text), clock) for _ in range(num)])


def _seconds(work: Callable[[], object], clock: Clock) -> float:
    began = clock()
    work()
    return clock() - began


def run(num_decisions: int, num_requests: int, clock: Clock) -> Result:
    with tempfile.TemporaryDirectory() as directory:
        requests = uvloop.run(request_costs(Path(directory), num_requests))
    return Result(
        machine=describe(),
        clock=clock.__name__,
        decisions=[
            decision_times(SMALL, num_decisions, clock),
            decision_times(LARGE, max(100, num_decisions // 5), clock),
        ],
        hashing_us=hashing_times(50, clock),
        tokenising_us=tokenising_times(50, clock),
        events_per_s=events_per_s(clock),
        snapshot_per_s=snapshot_per_s(clock),
        requests=requests,
    )


def table(result: Result) -> str:
    lines = [
        f"{'µs: p50 (p99)':38}" + "".join(f"{_title(d.setting):>24}" for d in result.decisions)
    ]
    for name in ("snapshot", "match", "price", "choose", "decision", "placed"):
        times = [getattr(each, name) for each in result.decisions]
        lines.append(
            f"{name:38}" + "".join(f"{t.p50:14,.0f} {f'({t.p99:,.0f})':>9}" for t in times)
        )
    lines += [
        "",
        f"{'hashing 100,000 tokens, grains of 32':38}{_of(result.hashing_us)}",
        f"{'tokenising 4,096 tokens':38}{_of(result.tokenising_us)}",
        f"{'events':38}{result.events_per_s / 1e6:13.2f} million grains/s",
        f"{'a snapshot':38}{result.snapshot_per_s / 1e6:13.2f} million grains/s",
        "",
        f"{'processor time of a request, µs':38}{'router':>10}{'echo':>10}",
    ]
    for name in ("short", "long"):
        cost = getattr(result.requests, name)
        lines.append(f"{'  of ' + name + ' prompts':38}{cost.router:10,.0f}{cost.echo:10,.0f}")
    return "\n".join([*lines, "", f"{result.machine}, clock: {result.clock}"])


def _title(setting: DecisionSetting) -> str:
    return f"{setting.num_tokens:,} x {setting.num_prefill}+{setting.num_decode}"


def _of(each: Time) -> str:
    return f"{each.p50:13,.0f} {f'({each.p99:,.0f})':>9}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=600)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument(
        "--cpu", action="store_true", help="processor time, on a machine that does other things"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    clock = time.thread_time if arguments.cpu else time.perf_counter
    result = run(arguments.decisions, arguments.requests, clock)
    print(json.dumps(asdict(result)) if arguments.json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
