"""Real processes whose policy changes under load: no request is lost, and each keeps its own."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cluster.secrets import load_secrets
from deploy.launcher import LocalCluster
from deploy.plan import ClusterPlan
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import inference_pb2_grpc, worker_pb2
from tests.doors import ask_cluster
from tests.processes.echo_cluster import NO_KILLING, until
from tests.router.checkpoint import write_checkpoint
from tests.router.policy_texts import policy_text

pytestmark = pytest.mark.slow

PROMPT = pb.TokenIds(ids=list(range(1, 33)))
NUM_TOKENS = 4
NUM_CLIENTS = 16
SHARE = 0.7  # of the sustained rate
BROKEN = policy_text().replace("stretch", "strech")


@dataclass(slots=True, eq=False)
class Operator:
    """Asks the router as `penstock policy` does."""

    cluster: LocalCluster
    channel: grpc.aio.Channel
    token: str = ""
    in_force: int = 1  # as it was told last
    asked_for: int = 1

    def __post_init__(self) -> None:
        self.token = load_secrets(self.cluster.secrets_file).cluster_token

    async def ask(self, method: str, request: Any) -> Any:
        return await ask_cluster(self.channel, method, request, self.token)

    async def status(self) -> worker_pb2.PolicyStatusResponse:
        found: worker_pb2.PolicyStatusResponse = await self.ask(
            "PolicyStatus", worker_pb2.PolicyStatusRequest()
        )
        return found

    async def reload(self) -> None:
        """The next one is in force when this returns."""
        self.asked_for += 1
        change = await self.ask("ReloadPolicy", worker_pb2.ReloadPolicyRequest())
        self.in_force = change.generation.number
        assert self.in_force == self.asked_for

    async def reload_refused(self) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.ask("ReloadPolicy", worker_pb2.ReloadPolicyRequest())
        assert "did you mean 'stretch'?" in (refused.value.details() or "")


@dataclass(slots=True, eq=False)
class Load:
    """Requests, and between which generations each was under way."""

    stub: Any
    operator: Operator
    num_sent: int = 0
    lost: list[str] = field(default_factory=list)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)

    async def request(self) -> None:
        self.num_sent += 1
        request_id, first = f"r{self.num_sent}", self.operator.in_force
        request = pb.GenerateRequest(
            request_id=request_id,
            token_ids=PROMPT,
            stop=pb.LengthAndStop(max_tokens=NUM_TOKENS, ignore_eos=True),
        )
        try:
            messages = [message async for message in self.stub.Generate(request, timeout=30)]
        except grpc.aio.AioRpcError as error:
            self.lost.append(f"{request_id}: {error.code().name} {error.details()}")
            return
        num_tokens = sum(len(delta.token_ids) for each in messages for delta in each.deltas)
        if num_tokens != NUM_TOKENS or not messages[-1].HasField("finished"):
            self.lost.append(f"{request_id}: {num_tokens} tokens")
        self.spans[request_id] = first, self.operator.asked_for

    async def sustained(self, seconds: float) -> float:
        """Requests a second that clients without pause get through."""
        loop = asyncio.get_running_loop()
        ends_at, before = loop.time() + seconds, len(self.spans)

        async def client() -> None:
            while loop.time() < ends_at:
                await self.request()

        await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)))
        return (len(self.spans) - before) / seconds

    async def steady(self, rate: float, over: asyncio.Event) -> None:
        """They come evenly, whatever becomes of those before."""
        loop = asyncio.get_running_loop()
        begun, number = loop.time(), 0
        async with asyncio.TaskGroup() as tasks:
            while not over.is_set():
                tasks.create_task(self.request())
                number += 1
                await asyncio.sleep(begun + number / rate - loop.time())


@asynccontextmanager
async def running(folder: Path, policy: Path) -> AsyncIterator[tuple[Operator, Load]]:
    plan = ClusterPlan(
        checkpoint=write_checkpoint(folder),
        num_prefill=0,
        num_decode=1,
        num_blocks=512,
        drain_s=5.0,
        router={"policy_file": str(policy), "records_budget_bytes": 256 << 20},
        worker={"engine": "echo"},
    )
    async with (
        LocalCluster(plan, supervision=NO_KILLING) as cluster,
        grpc.aio.insecure_channel(cluster.address) as channel,
    ):
        operator = Operator(cluster, channel)
        yield operator, Load(inference_pb2_grpc.InferenceStub(channel), operator)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(policy_text())
    return path


@pytest.mark.prove
@pytest.mark.parametrize(
    ("num_reloads", "seconds"),
    [(20, 1.0), (200, 60.0)],
    ids=["20", "200"],
)
async def test_no_request_is_lost_while_the_policy_is_reloaded(
    tmp_path: Path, policy: Path, num_reloads: int, seconds: float
) -> None:
    async with running(tmp_path, policy) as (operator, load):
        await load.sustained(0.2)  # connections, first steps
        rate = SHARE * await load.sustained(0.8)
        num_before = load.num_sent
        over = asyncio.Event()
        loading = asyncio.create_task(load.steady(rate, over))
        for number in range(num_reloads):
            if number % 2:
                policy.write_text(BROKEN)
                await operator.reload_refused()
            else:
                policy.write_text(policy_text(2.0 + number))
                await operator.reload()
            await asyncio.sleep(seconds / num_reloads)
        over.set()
        await loading
        seen = await operator.status()
        print(
            f"{load.num_sent - num_before} requests at {rate:.0f}/s, {num_reloads} reloads:"
            f" {len(load.lost)} lost"
        )
        assert load.lost == []
        assert seen.active.number == 1 + num_reloads // 2
        assert seen.reload.failures == num_reloads // 2
        placed = {each.number: each.placed for each in seen.traffic}
        assert sum(placed.values()) == load.num_sent or len(placed) == 16
        assert sum(num > 0 for num in placed.values()) > len(placed) / 2
        assert sum(each.in_flight + each.errors for each in seen.traffic) == 0
        await _each_is_pinned(operator, load)
        await _follows(operator, policy)


async def _each_is_pinned(operator: Operator, load: Load) -> None:
    """To one policy, that was in force while the request was under way."""
    sample = sorted(load.spans.items())[:: max(1, len(load.spans) // 300)]
    for request_id, (first, last) in sample:
        request = worker_pb2.ExplainRequest(request_id=request_id, max_candidates=1)
        told = await operator.ask("Explain", request)
        assert first <= told.generation.number <= last
        assert (told.outcome.state, len(told.tries)) == ("finished", 1)


async def _follows(operator: Operator, policy: Path) -> None:
    """A file that changes takes effect by itself, and sooner on a signal."""

    async def is_in_force(name: str) -> bool:
        return (await operator.status()).active.name == name

    policy.write_text(policy_text(501.0, name="by-itself"))
    await until(lambda: is_in_force("by-itself"), within_s=10.0)
    fresh = policy.with_name("fresh.yaml")
    fresh.write_text(policy_text(502.0, name="by-signal"))
    fresh.replace(policy)
    os.kill(operator.cluster.children["router"].pid, signal.SIGHUP)
    await until(lambda: is_in_force("by-signal"), within_s=10.0)


@pytest.mark.prove
async def test_a_router_that_is_killed_goes_on_with_what_it_was_told(
    tmp_path: Path, policy: Path
) -> None:
    async with running(tmp_path, policy) as (operator, _):
        text = policy_text(7.0, name="told")
        await operator.ask("ApplyPolicy", worker_pb2.ApplyPolicyRequest(text=text, source="ops"))
        policy.write_text(BROKEN)
        os.kill(operator.cluster.children["router"].pid, signal.SIGKILL)

        async def is_back() -> bool:
            try:
                return bool((await operator.status()).active.number)
            except grpc.aio.AioRpcError:
                return False

        async def is_told() -> bool:
            return await is_back() and not (await operator.status()).reload.last_reload_successful

        await until(is_told, within_s=20.0)
        active = (await operator.status()).active
        assert (active.number, active.name, active.text) == (2, "told", text)
