"""The real side of `bench.fidelity`: requests sent on time, what workers report, and what passes
between processes besides the work that they predict."""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from statistics import fmean, median

from bench.fidelity_workloads import GRAIN, PlannedRequest, Sizes, cold
from cluster.channel import open_channel
from cluster.codec import load_report_from_pb
from cluster.secrets import load_secrets
from cluster.types import Role
from cluster.watch import CALM, PAIRS_EVERY, REPORT_INTERVAL_S
from cluster.worker_codec import member_from_pb
from deploy.launcher import LocalCluster
from penstock import AsyncClient
from penstock.load.generator import NO_RETRIES, OfferedLoad, measure
from penstock.load.report import Measured
from penstock.v1 import worker_pb2
from simulator.fitted import Reported
from simulator.setting import Setting

_NUM_TOGETHER, _NUM_BURSTS = 8, 3
_ALONE_S, _FEWEST_ALONE = 0.05, 10
MAX_STEP_TOKENS = 512  # the workers' default
_MAX_ROUNDS = 10
_CONVERGED = 0.03  # relative change of what a usual prompt is predicted to cost
_REPORTED_S = (PAIRS_EVERY + CALM) * REPORT_INTERVAL_S  # all that is told has been told by then


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """Seconds that pass beside queues and forwards; by their names in a `Setting`."""

    client_s: float
    door_s: float
    message_s: float
    step_gap_s: float


async def ask(address: str, asked: Sequence[PlannedRequest]) -> list[Measured]:
    """Sends each request when it is due; times count from then. RuntimeError if one fails."""
    async with AsyncClient(address, retries=NO_RETRIES) as client:
        await client.models()  # connected
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks = []
            for each in asked:
                due = started + each.arrival_s
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                load = OfferedLoad(output_tokens=each.num_output)
                tasks.append(group.create_task(measure(client, list(each.prompt), load, due)))
    measured = [task.result() for task in tasks]
    if errors := {each.error for each in measured if each.error}:
        raise RuntimeError(f"requests failed: {', '.join(sorted(errors))}")
    return measured


async def reported(cluster: LocalCluster) -> list[Reported]:
    """What each worker says of itself now."""
    await asyncio.sleep(_REPORTED_S)
    return await _status(cluster)


async def _status(cluster: LocalCluster) -> list[Reported]:
    """As of the last reports."""
    token = load_secrets(cluster.secrets_file).cluster_token
    async with open_channel(cluster.address, token) as channel:
        reply: worker_pb2.StatusResponse = await channel.unary(
            "penstock.v1.Cluster", "Status", worker_pb2.StatusRequest(), timeout_s=5.0
        )
    return [(member_from_pb(w.member), load_report_from_pb(w.load)) for w in reply.workers]


async def until_idle(cluster: LocalCluster) -> None:
    """Until all that were served are in no report any more: routers count them that long."""
    while True:
        await asyncio.sleep(REPORT_INTERVAL_S / 4)
        if not any(load.num_running + load.num_waiting for _, load in await _status(cluster)):
            return


async def until_converged(
    cluster: LocalCluster, sizes: Sizes, chances: random.Random, say: Callable[[str], None]
) -> None:
    """Sends prompts that share nothing until no worker's predictions change any more."""
    known: list[float] = []
    for number in range(_MAX_ROUNDS):
        await ask(cluster.address, cold(replace(sizes, num_requests=24), chances))
        predicted = [_predicted_s(each, sizes) for each in await reported(cluster)]
        if known and all(
            abs(now / before - 1) < _CONVERGED for now, before in zip(predicted, known, strict=True)
        ):
            say(f"costs have converged after {number + 1} rounds")
            return
        known = predicted
    say(f"costs still change after {_MAX_ROUNDS} rounds: the machine is busy")


def _predicted_s(each: Reported, sizes: Sizes) -> float:
    member, report = each
    if member.role is Role.PREFILL:
        return report.prefill_cost.seconds(sizes.prompt_tokens, 0)
    return report.decode_cost.seconds(4 * sizes.prompt_tokens, 4)


async def overheads(
    address: str, setting: Setting, sizes: Sizes, chances: random.Random, *, num_alone: int = 12
) -> Overheads:
    """From requests one at a time, and from small ones that come together."""
    alone = []
    for each in cold(replace(sizes, num_requests=num_alone), chances):
        alone += await ask(address, [replace(each, arrival_s=0.0)])
    alone_s, doors = median(map(_door_s, alone)), []
    small = replace(sizes, num_requests=_NUM_TOGETHER, prompt_tokens=GRAIN, output_tokens=1)
    for _ in range(_NUM_BURSTS):
        burst = [replace(each, arrival_s=0.0) for each in cold(small, chances)]
        doors.append(_each_door_s(alone_s, await ask(address, burst)))
    return _fitted(alone, fmean(doors), setting.message_s)


def during(
    around: Overheads, asked: Sequence[PlannedRequest], measured: Sequence[Measured]
) -> Overheads:
    """The same under this run's load, as far as requests came by themselves or at once."""
    arrivals = [-inf, *(each.arrival_s for each in asked), inf]
    alone = [
        each
        for each, (before, now, after) in zip(
            measured, zip(arrivals, arrivals[1:], arrivals[2:], strict=False), strict=True
        )
        if min(now - before, after - now) > _ALONE_S
    ]
    if len(alone) >= _FEWEST_ALONE:
        return _fitted(alone, around.door_s, around.message_s)
    at_once: dict[float, list[Measured]] = defaultdict(list)
    for one, each in zip(asked, measured, strict=True):
        at_once[one.arrival_s].append(each)
    alone_s = around.client_s + around.door_s + 2 * around.message_s
    doors = [_each_door_s(alone_s, each) for each in at_once.values() if len(each) > 1]
    return replace(around, door_s=median(doors)) if doors else around


def _each_door_s(alone_s: float, together: Sequence[Measured]) -> float:
    """Of requests that come together, which go through the router's loop one after another, where
    one by itself takes `alone_s` in all."""
    waited_s = fmean(map(_door_s, together)) - alone_s
    return min(max(0.0, 2 * waited_s / (len(together) - 1)), alone_s)


def _fitted(alone: Sequence[Measured], door_s: float, message_s: float) -> Overheads:
    """Medians; `message_s` where nothing was handed over."""
    handed_over = [_hops_s(each) for each in alone if each.is_remote]
    message_s = max(0.0, median(handed_over) / 2) if handed_over else message_s
    return Overheads(
        client_s=max(0.0, median(map(_door_s, alone)) - door_s - 2 * message_s),
        door_s=door_s,
        message_s=message_s,
        step_gap_s=max(0.0, median(map(_gap_s, alone))),
    )


def _gap_s(each: Measured) -> float:
    """What a step takes beside its forward."""
    num_new = each.prompt_tokens - each.cached_tokens
    return (each.prefill_s - each.forward_s) / max(1, ceil(num_new / MAX_STEP_TOKENS))


def _door_s(each: Measured) -> float:
    """From the client to the decode worker, and with the first token back."""
    return each.ttft_s - each.first_token_s + each.router_s


def _hops_s(each: Measured) -> float:
    """Between the decode and the prefill worker, there and back."""
    return each.first_token_s - each.router_s - each.queue_s - each.prefill_s
