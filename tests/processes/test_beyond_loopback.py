"""A cluster of real processes at an address that others reach: what passes there is under TLS, and
strangers come in at the front door alone."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.addresses import Endpoint
from cluster.authority import PLAIN, Credentials, create_authority
from cluster.channel import open_channel
from cluster.errors import StartupError, Unauthenticated, WorkerLost
from cluster.secrets import create_secrets, load_secrets
from deploy.launcher import LocalCluster
from deploy.plan import ClusterPlan
from kv_transfer.tcp.dial import TcpAddress
from penstock.aio import AsyncClient
from penstock.v1 import worker_pb2
from tests.identities import BEYOND_LOOPBACK
from tests.processes.echo_cluster import NO_KILLING, status, until
from tests.router.checkpoint import write_checkpoint
from tests.workers.answers import expected, prompt_of
from tests.written_secrets import written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def plan_of(folder: Path, **settings: Any) -> ClusterPlan:
    worker = {"engine": "echo", "lease_s": 1.0, "address": str(Endpoint(BEYOND_LOOPBACK, 0))}
    given: dict[str, Any] = {"insecure": True, "transports": ("tcp",), **settings}
    return ClusterPlan(
        checkpoint=write_checkpoint(folder),
        host=BEYOND_LOOPBACK,
        num_blocks=128,
        drain_s=5.0,
        router={"disaggregate": "always"},
        worker={**worker, **given.pop("worker", {})},
        **given,
    )


@asynccontextmanager
async def running(plan: ClusterPlan) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(plan, supervision=NO_KILLING) as cluster:
        yield cluster


async def penstock(*arguments: str, cluster: LocalCluster, home: Path) -> tuple[int | None, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "penstock", *arguments, "--json"),
        *("--address", cluster.address, "--secrets-file", str(cluster.secrets_file)),
        env={**os.environ, "HOME": str(home)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return process.returncode, json.loads(out)


async def test_a_prompt_is_handed_over_under_tls(tmp_path: Path) -> None:
    async with running(plan_of(tmp_path)) as cluster:
        client = AsyncClient(cluster.address)
        prompt = prompt_of(1, 300)
        options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
        answer = await client.generate(token_ids=prompt, timeout=60, **options).result()
        await client.close()
        assert list(answer.token_ids) == expected(prompt, 8)
        assert answer.accepted.prefill_worker == "prefill-0"
        assert answer.timeline.recomputes == 0
        await until(lambda: _has_moved_by_tcp(cluster), 10.0)

        workers = await status(cluster)
        await _strangers_get_nowhere(cluster, workers["decode-0"].member.worker)
        await _operators_see_how_it_is(cluster, tmp_path)
        _no_key_is_shown(cluster)


async def _has_moved_by_tcp(cluster: LocalCluster) -> bool:
    pairs = (await status(cluster))["decode-0"].load.pairs
    return {pair.transport for pair in pairs if pair.bytes} == {"tcp"}


async def _strangers_get_nowhere(cluster: LocalCluster, worker: Any) -> None:
    token = load_secrets(cluster.secrets_file).cluster_token
    others = Credentials(create_authority())
    kv = TcpAddress.parse(worker.transports["tcp"])
    for address in (cluster.internal, worker.address, kv.endpoint):
        for credentials in (PLAIN, others):
            with pytest.raises((WorkerLost, Unauthenticated)):
                await _status(address, token, credentials)
    with pytest.raises(Unauthenticated, match="This is the front door"):
        await _status(cluster.address, token, PLAIN)


async def _status(address: str, token: str, credentials: Credentials) -> None:
    async with open_channel(address, token, credentials=credentials) as channel:
        await channel.unary(
            "penstock.v1.Cluster", "Status", worker_pb2.StatusRequest(), timeout_s=10
        )


async def _operators_see_how_it_is(cluster: LocalCluster, home: Path) -> None:
    """By the address of the front door: the way in for them is found from there."""
    code, seen = await penstock("status", cluster=cluster, home=home)
    assert code == 0, seen
    assert seen["internal"] == cluster.internal
    [front_door] = seen["exposed"]
    assert cluster.listens in front_door
    code, seen = await penstock("doctor", cluster=cluster, home=home)
    assert code == 0, seen
    by_check = {(each["check"], each["subject"]): each for each in seen["findings"]}
    assert by_check["encryption", "cluster"]["severity"] == "pass"
    for name in ("prefill-0", "decode-0"):
        assert by_check["sockets", name]["severity"] == "pass"
        assert "under TLS" in by_check["sockets", name]["what"]
    exposed = [each for each in seen["findings"] if each["severity"] == "warn"]
    assert {each["check"] for each in exposed} >= {"front_door"}
    [pair] = seen["pairs"]
    assert pair["transport"] == "tcp"


def _no_key_is_shown(cluster: LocalCluster) -> None:
    """In no file but the secrets', no argument and no environment."""
    secrets = load_secrets(cluster.secrets_file)
    assert secrets.authority is not None
    planted = [*written(secrets), "PRIVATE KEY"]
    places = [path for path in cluster.run_dir.rglob("*") if path.suffix in (".yaml", ".log")]
    places += [path for path in cluster.log_dir.rglob("*") if path.is_file()]
    for child in cluster.children.values():
        places += [Path(f"/proc/{child.pid}/{each}") for each in ("cmdline", "environ")]
    assert len(places) > 6
    for path in places:
        if path != cluster.secrets_file:
            text = path.read_text(errors="replace")
            assert [one for one in planted if one in text] == [], path


async def test_what_listens_everywhere_is_dialled_where_it_says(tmp_path: Path) -> None:
    worker = {"address": "0.0.0.0:0", "advertise": BEYOND_LOOPBACK}
    async with running(plan_of(tmp_path, worker=worker)) as cluster:
        assert cluster.children["decode-0"].address.startswith("0.0.0.0:")
        workers = await status(cluster)
        for each in workers.values():
            assert each.serving
            assert Endpoint.parse(each.member.worker.address).host == BEYOND_LOOPBACK
            assert TcpAddress.parse(each.member.worker.transports["tcp"]).host == BEYOND_LOOPBACK


async def test_without_an_authority_the_word_is_needed_and_repeated(tmp_path: Path) -> None:
    secrets_file = tmp_path / "secrets.yaml"
    create_secrets(secrets_file, with_authority=False)
    careful = plan_of(tmp_path, secrets_file=secrets_file, worker={"insecure": False})
    with pytest.raises(StartupError, match="holds no authority for TLS: draw one that does"):
        async with running(careful):
            pass
    async with running(plan_of(tmp_path, secrets_file=secrets_file)) as cluster:
        code, seen = await penstock("status", cluster=cluster, home=tmp_path)
        assert code == 0, seen
        assert len(seen["exposed"]) == 3
        assert "calls to the router, decode-0, prefill-0, prompts included" in seen["exposed"][1]
        assert "KV of decode-0, prefill-0 by tcp can be read" in seen["exposed"][2]
        _, seen = await penstock("doctor", cluster=cluster, home=tmp_path)
        said = [each["what"] for each in seen["findings"] if each["check"] == "encryption"]
        assert len(said) == 2
        assert all(each.startswith("INSECURE: ") for each in said)


async def test_a_router_that_is_started_again_is_found_where_it_was(tmp_path: Path) -> None:
    async with running(plan_of(tmp_path)) as cluster:
        internal = cluster.internal
        router = cluster.children["router"]
        router.kill()
        async with asyncio.timeout(60):
            while cluster.children["router"] is router:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.02)
            while not all(w.serving for w in (await status(cluster)).values()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert cluster.internal == internal
