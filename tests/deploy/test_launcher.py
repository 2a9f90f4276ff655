"""The launcher against processes that behave, and against those that do not."""

import asyncio
import os
import signal
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import StartupError
from deploy.launcher import LocalCluster, Supervision
from deploy.plan import ClusterPlan, Part
from deploy.run_dir import LOCK, RunDir, sweep

FAKE = (sys.executable, str(Path(__file__).with_name("fake_process.py")))
QUICK = Supervision(ready_s=20, frozen_s=0.4, stop_s=0.5, first_backoff_s=0.01)


class Told:
    """Listens to the launcher."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._news: asyncio.Queue[str] = asyncio.Queue()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self._news.put_nowait(line)

    async def until(self, part: str) -> None:
        async with asyncio.timeout(20):
            while part not in await self._news.get():
                pass


def local_cluster(
    folder: Path, told: Told | None = None, *, worker: dict[str, Any] | None = None
) -> LocalCluster:
    journal = {"journal": str(folder / "journal")}
    plan = ClusterPlan(
        checkpoint=folder,
        commands=dict.fromkeys(Part, FAKE),
        router=journal,
        worker={**journal, **(worker or {})},
        drain_s=5.0,
    )
    return LocalCluster(plan, supervision=QUICK, say=told or Told(), run_dir_parent=folder)


@pytest.mark.slow
async def test_a_cluster_starts_and_drains_the_router_first(tmp_path: Path) -> None:
    told = Told()
    async with local_cluster(tmp_path, told) as cluster:
        assert set(cluster.children) == {"router", "prefill-0", "decode-0"}
        assert cluster.address.startswith("127.0.0.1:")
        assert stat.S_IMODE(cluster.run_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE(cluster.secrets_file.stat().st_mode) == 0o600
        assert "a line that is no JSON" in (cluster.run_dir / "logs/router.log").read_text()
        pids = [child.pid for child in cluster.children.values()]
    journal = (tmp_path / "journal").read_text().split()
    assert journal[0] == "router"
    assert set(journal[1:]) == {"prefill-0", "decode-0"}
    assert not cluster.run_dir.exists()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
async def test_a_dead_worker_is_started_again(tmp_path: Path) -> None:
    told = Told()
    async with local_cluster(tmp_path, told) as cluster:
        old = cluster.children["decode-0"]
        os.kill(old.pid, signal.SIGKILL)
        await told.until("starting it again")
        await told.until("decode-0 is ready")
        assert cluster.children["decode-0"].pid != old.pid
        assert cluster.num_restarts == 1


@pytest.mark.slow
async def test_a_router_comes_back_at_its_address(tmp_path: Path) -> None:
    told = Told()
    async with local_cluster(tmp_path, told) as cluster:
        address, http = cluster.address, cluster.http
        os.kill(cluster.children["router"].pid, signal.SIGKILL)
        await told.until("starting it again")
        await told.until("router is ready")
        assert (cluster.address, cluster.http) == (address, http)
        assert cluster.children["router"].plan.config["http"] == http == "127.0.0.1:8123"


@pytest.mark.slow
async def test_a_stopped_worker_is_killed_and_started_again(tmp_path: Path) -> None:
    told = Told()
    async with local_cluster(tmp_path, told) as cluster:
        old = cluster.children["prefill-0"]
        os.kill(old.pid, signal.SIGSTOP)
        await told.until("starting it again")
        await told.until("prefill-0 is ready")
        assert not old.is_running
    assert any("did not serve for 0.4 s and was killed" in line for line in told.lines)


@pytest.mark.slow
async def test_a_wedged_worker_is_killed(tmp_path: Path) -> None:
    told = Told()
    async with local_cluster(tmp_path, told, worker={"fault": "wedged"}) as cluster:
        old = cluster.children["decode-0"]
        await told.until("decode-0 did not serve")
        assert not old.is_running


@pytest.mark.slow
async def test_a_worker_that_ignores_the_drain_is_killed(tmp_path: Path) -> None:
    told = Told()
    cluster = local_cluster(tmp_path, told, worker={"fault": "deaf"})
    async with cluster:
        children = list(cluster.children.values())
        killer = asyncio.create_task(asyncio.sleep(0.3))
        killer.add_done_callback(lambda _: cluster.kill())
    assert not any(child.is_running for child in children)


@pytest.mark.slow
async def test_a_process_that_refuses_to_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="truncated; download it again"):
        async with local_cluster(tmp_path, worker={"fault": "refuses"}):
            pass
    assert sorted(path.name for path in tmp_path.glob("penstock-*/*")) == [
        "lock",
        "logs",
    ]  # no secrets


@pytest.mark.slow
async def test_a_process_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    cluster = local_cluster(tmp_path, worker={"fault": "mute"})
    cluster._times = Supervision(ready_s=1.0)
    with pytest.raises(StartupError, match="was not ready within 1 s"):
        async with cluster:
            pass
    assert not any(child.is_running for child in cluster.children.values())


def test_what_a_killed_launcher_left_is_swept(tmp_path: Path) -> None:
    living = RunDir.create(parent=tmp_path)
    dead = tmp_path / "penstock-dead"
    dead.mkdir()
    (dead / LOCK).touch()
    (dead / "secrets.yaml").touch()
    stranger = tmp_path / "penstock-stranger"
    stranger.mkdir()
    assert sweep(tmp_path) == [dead]
    assert not dead.exists()
    assert stranger.exists()
    living.remove()
    assert not living.path.exists()


def test_pools_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="--num-blocks"):
        RunDir.create(parent=tmp_path, num_bytes=2**60)


def test_the_plan_gives_each_process_its_own_configuration(tmp_path: Path) -> None:
    plan = ClusterPlan(checkpoint=tmp_path, model="m", num_prefill=2, num_decode=1, port=5)
    router = plan.router_plan(tmp_path / "s", 5)
    workers = plan.worker_plans(tmp_path / "s", tmp_path, "127.0.0.1:5")
    assert router.config["address"] == "127.0.0.1:5"
    assert [worker.name for worker in workers] == ["prefill-0", "prefill-1", "decode-0"]
    assert {worker.config["router"] for worker in workers} == {"127.0.0.1:5"}
    assert workers[0].command[-1] == "prefill_worker"
    assert "num_blocks" not in workers[0].config  # unset: the worker's own default
    assert "require_transport" not in workers[0].config
    assert "internal" not in router.config
    assert router.config["http"] == "127.0.0.1:0"
    assert plan.router_plan(tmp_path / "s", 5, http_port=8).config["http"] == "127.0.0.1:8"
    none = ClusterPlan(checkpoint=tmp_path, http_port=None)
    assert none.router_plan(tmp_path / "s", 5).config["http"] is None
    only = ClusterPlan(checkpoint=tmp_path, transports=("tcp",), require_transport="tcp")
    [prefill, decode] = only.worker_plans(tmp_path / "s", tmp_path, "127.0.0.1:5")
    assert prefill.config["transports"] == decode.config["transports"] == ["tcp"]
    assert prefill.config["require_transport"] == "tcp"


def test_a_front_door_for_others_has_another_beside_it_for_calls_of_the_cluster(
    tmp_path: Path,
) -> None:
    plan = ClusterPlan(checkpoint=tmp_path, host="::", insecure=True, internal_port=7)
    first = plan.router_plan(tmp_path / "s", 5).config
    assert (first["address"], first["internal"], first["insecure"]) == ("[::]:5", "[::]:7", True)
    assert "keys_file" not in first
    keyed = replace(plan, insecure=False, keys_file=tmp_path / "keys.json")
    config = keyed.router_plan(tmp_path / "s", 5).config
    assert (config["keys_file"], "insecure" in config) == (str(tmp_path / "keys.json"), False)
    again = plan.router_plan(tmp_path / "s", 5, 9).config
    assert again["internal"] == "[::]:9"
    for worker in plan.worker_plans(tmp_path / "s", tmp_path, "127.0.0.1:5"):
        assert worker.config["insecure"] is True
