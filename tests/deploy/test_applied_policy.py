"""A policy that was applied outlives its router and `penstock up` again; the commands are real, and
so are the processes; Ray is not."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import yaml

from cluster.secrets import create_secrets
from penstock.cli.app import run
from tests.deploy.local_ray import LocalRay
from tests.deploy.polling import until
from tests.redis_server import redis_server
from tests.router.policy_texts import policy_text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Penstock = Callable[..., Ended]


@pytest.fixture
def penstock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Penstock]:
    """Whose Ray is one machine, and this process."""
    for name, folder in (("HOME", "home"), ("XDG_STATE_HOME", "state")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("PENSTOCK_ADDRESS", raising=False)
    ray = LocalRay(tmp_path)
    door = SimpleNamespace(connected=lambda _: nullcontext(ray))
    monkeypatch.setitem(sys.modules, "deploy.ray_door", door)

    def call(*arguments: object) -> Ended:
        with pytest.raises(SystemExit) as ended:
            run([str(each) for each in arguments])
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    yield call
    ray.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Two routers and a worker; routers follow no file."""
    create_secrets(tmp_path / "secrets.yaml")
    path = tmp_path / "lab.yaml"
    with asyncio.Runner() as runner:
        redis = redis_server()
        spec = {
            "pools": [{"name": "answers", "role": "decode", "numBlocks": 64}],
            "routers": {"count": 2, "ports": [0], "internalPorts": [0]},
            "store": runner.run(redis.__aenter__()).url,
            "secretsFile": "secrets.yaml",
        }
        head = {"apiVersion": "penstock/v1", "kind": "Cluster", "metadata": {"name": "lab"}}
        path.write_text(yaml.safe_dump({**head, "spec": spec}))
        yield path
        runner.run(redis.__aexit__(None, None, None))


def test_it_outlives_its_router_and_up_again_and_diff_shows_it(
    penstock: Penstock, file: Path, tmp_path: Path
) -> None:
    def routers() -> dict[str, int]:
        ended = penstock("up", "--wait", "--json", "-f", file)
        assert ended.code == 0, ended.err
        last = ended.out.splitlines()[-1]  # what the actors say goes there, too
        processes = json.loads(last)["processes"]
        return {name: each["pid"] for name, each in processes.items() if "router" in name}

    policy = tmp_path / "policy.yaml"
    policy.write_text(policy_text(7.0))
    before = routers()
    assert penstock("cluster", "diff", "-f", file)[:2] == (0, "")
    assert penstock("policy", "apply", policy).code == 0
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: not before.items() & routers().items(), "both are healed", within_s=60.0)
    again = penstock("up", "--wait", "-f", file)
    assert "Nothing is to be changed." in again.err
    ended = penstock("cluster", "diff", "-f", file)
    assert ended[:2] == (1, "metadata.name: default -> p\nspec.queue.stretch: 1.0 -> 7.0\n")
    assert f"from {policy}" in ended.err
