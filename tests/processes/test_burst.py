"""More requests at once than are taken on, on real processes that are short of processor time: what
is within the bound is answered, the rest is refused at once, and nobody is taken for dead.
"""

import asyncio
import json
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cluster.channel import open_channel
from cluster.secrets import load_secrets
from deploy.launcher import LocalCluster
from deploy.plan import ClusterPlan
from penstock.v1 import inference_pb2_grpc, worker_pb2
from router.standing import SILENCE_S
from tests.burnt_cores import burnt_cores
from tests.processes.echo_cluster import NO_KILLING, status
from tests.router.checkpoint import write_checkpoint
from tests.router.cluster_of_fakes import failure
from tests.router.router_process import ROOT
from tests.workers.answers import expected, greedy, prompt_of

BOUND = 1024  # requests in flight
SHORT = 32  # tokens of an answer: some end while others come, and make room for them
LONG = 160  # none ends before all have come


@pytest.mark.prove
@pytest.mark.alone
@pytest.mark.parametrize(
    ("num_tokens", "is_busy", "is_timed"),
    [
        pytest.param(SHORT, False, False, id="short"),
        pytest.param(LONG, False, False, id="long"),
        pytest.param(SHORT, False, True, id="timed"),
        pytest.param(SHORT, True, False, id="busy"),
    ],
)
async def test_a_burst_above_the_bound_is_answered_up_to_it(
    tmp_path: Path, num_tokens: int, is_busy: bool, is_timed: bool
) -> None:
    plan = ClusterPlan(
        checkpoint=write_checkpoint(tmp_path),
        num_decode=2,
        num_prefill=2,
        num_blocks=1024,
        drain_s=5.0,
        worker={"engine": "echo"},
    )
    worst: dict[str, float] = {}
    burning = burnt_cores(at_most_s=240) if is_busy else nullcontext()
    async with LocalCluster(plan, supervision=NO_KILLING) as cluster:
        before = await lives(cluster)
        with burning, idle_connections(cluster.address, 500):
            async with looked_at(cluster, worst):
                ends = await burst(cluster.address, BOUND + 76, num_tokens)
        after = await lives(cluster)
        placed = await num_placed(cluster)
        logs = (cluster.run_dir / "logs" / "router.log").read_text()
        peak = peak_bytes(cluster.children["router"].pid)
    print(f"{dict(ends)}; the router's peak was {peak / 2**20:.0f} MiB; {worst}")
    assert ends.keys() <= {"whole", "OVERLOADED"}
    if num_tokens == LONG:
        assert ends == {"whole": BOUND, "OVERLOADED": 76}
    assert ends["whole"] >= BOUND, "those that come once others have ended are taken on, too"
    assert placed == ends["whole"]
    assert "is gone" not in logs
    assert "new life" not in logs
    assert after == before
    if is_timed:
        assert worst["report_age_s"] < SILENCE_S


async def lives(cluster: LocalCluster) -> dict[str, str]:
    """All serve, by what lives of them."""
    workers = await status(cluster)
    return {name: worker.member.worker.incarnation for name, worker in workers.items()}


@asynccontextmanager
async def looked_at(cluster: LocalCluster, seen: dict[str, float]) -> AsyncIterator[None]:
    """Control traffic from a process of its own; `seen` says what was the worst."""
    token = load_secrets(cluster.secrets_file).cluster_token
    looking = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.processes.onlooker", cluster.address, token),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert looking.stdout is not None
        assert await looking.stdout.readline()  # a late start would be let in amid the burst
        yield
        said, _ = await looking.communicate(b"")  # its signal to end
        seen.update(json.loads(said))
    finally:
        if looking.returncode is None:
            looking.kill()
            await looking.wait()


@contextmanager
def idle_connections(address: str, num: int) -> Iterator[None]:
    """Clients that have connected and say nothing."""
    host, _, port = address.rpartition(":")
    with ExitStack() as stack:
        for _ in range(num):
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        yield


async def num_placed(cluster: LocalCluster) -> int:
    token = load_secrets(cluster.secrets_file).cluster_token
    async with open_channel(cluster.address, token) as channel:
        request = worker_pb2.StatusRequest()
        reply = await channel.unary("penstock.v1.Cluster", "Status", request, timeout_s=30)
    return int(reply.relay.placed - reply.relay.moved)


def peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


async def burst(address: str, num: int, num_tokens: int) -> Counter[str]:
    """All at once; how each ended."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = inference_pb2_grpc.InferenceStub(channel)
        return Counter(
            await asyncio.gather(*(one(stub, number, num_tokens) for number in range(num)))
        )


async def one(stub: Any, number: int, num_tokens: int) -> str:
    prompt = prompt_of(number, 40)
    request = greedy(prompt, num_tokens)
    got: list[int] = []
    is_whole = False
    try:
        async for message in stub.Generate(request, timeout=300):
            got += [token for delta in message.deltas for token in delta.token_ids]
            is_whole = message.HasField("finished")
    except grpc.aio.AioRpcError as error:
        failed = failure(error)
        is_refused = failed.retry_after_s is not None and not got
        return failed.reason if is_refused else f"{failed.reason}: {failed.message}"[:100]
    return "whole" if is_whole and got == expected(prompt, num_tokens) else "wrong"
