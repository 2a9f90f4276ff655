"""`penstock policy apply|reload|rollback|status|explain` against a real router."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from penstock.v1 import inference_pb2 as pb
from tests.penstock.command_line import Ended, Penstock
from tests.router.checkpoint import write_checkpoint
from tests.router.cluster_of_fakes import Cluster
from tests.router.policy_texts import policy_text

Operator = Callable[..., Awaitable[Ended]]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    checkpoint = write_checkpoint(tmp_path)
    async with Cluster(checkpoint, tmp_path, policy_file=_file(tmp_path, 1.0)) as cluster:
        yield cluster


@pytest.fixture
def operator(cluster: Cluster, penstock: Penstock, tmp_path: Path) -> Operator:
    """In a thread: the router lives on this one's event loop."""
    where = ["--address", cluster.address, "--secrets-file", str(tmp_path / "secrets.yaml")]

    async def call(*arguments: str) -> Ended:
        return await asyncio.to_thread(penstock, *arguments, *where)

    return call


def _file(folder: Path, stretch: float, more: str = "", name: str = "policy") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(policy_text(stretch, name=name, more=more))
    return path


@pytest.mark.slow
async def test_a_policy_is_applied_shown_and_rolled_back(
    operator: Operator, tmp_path: Path
) -> None:
    ended = await operator("policy", "apply", str(_file(tmp_path, 90.0, name="long")))
    assert ended.code == 0
    assert ended.out.startswith("generation 2 'long' (")
    assert ") is in force\n  metadata.name: policy -> long\n" in ended.out
    assert "\n  spec.queue.stretch: 1.0 -> 90.0\n" in ended.out
    assert "warning: 'spec.queue.stretch' is 90" in ended.err
    shown = (await operator("policy", "status")).out
    assert f"from {tmp_path}/long.yaml, since " in shown
    assert f"'{tmp_path}/policy.yaml' is followed; changes: 1 came, 0 refused" in shown
    text = (await operator("policy", "status", "--text")).out
    assert text == policy_text(90.0, name="long")
    ended = await operator("policy", "rollback", "--reason", "too long")
    assert (ended.code, ended.out[:12]) == (0, "generation 3")
    assert "is in force again\n" in ended.out
    assert "\n  spec.queue.stretch: 90.0 -> 1.0\n" in ended.out
    found = (await operator("policy", "status", "--json")).json
    assert found["last_change"].endswith("said: too long.")
    metrics = found["metrics"]
    assert metrics["penstock_config_last_reload_successful"] == 1
    assert metrics["penstock_config_info"] == {"hash": found["active"]["digest"], "generation": "3"}
    assert metrics["penstock_config_last_reload_success_timestamp_seconds"] > 1e9


async def test_a_canary_is_shown_with_its_figures(operator: Operator, tmp_path: Path) -> None:
    path = str(_file(tmp_path, 3.0, name="trial"))
    ended = await operator("policy", "apply", path, "--canary", "5%")
    assert "'trial'" in ended.out
    assert "waits for requests" in ended.err
    assert " is on trial\n  metadata.name: policy -> trial\n" in ended.out
    shown = (await operator("policy", "status")).out
    assert "canary     generation 2 'trial'" in shown
    needed = "it waits for requests: 0 of the 200 that a judgement needs, "
    assert f"gets 5 % for 600 s: {needed}" in shown
    assert "canary: 0 requests, 0 failed, TTFT p95 -; in force" in shown
    again = await operator("policy", "apply", path, "--canary", "5%", "--json")
    assert again.json["outcome"] == "POLICY_OUTCOME_UNCHANGED"
    wrong = await operator("policy", "apply", path, "--canary", "5")
    assert (wrong.code, wrong.out) == (2, "")
    assert "give a part of a whole, as 5%" in wrong.err


async def test_a_wrong_policy_is_refused_before_and_after_it_is_sent(
    operator: Operator, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(policy_text().replace("stretch", "strech"))
    ended = await operator("policy", "apply", str(broken))
    assert (ended.code, ended.out) == (2, "")
    assert "did you mean 'stretch'?" in ended.err
    broken.replace(tmp_path / "policy.yaml")
    ended = await operator("policy", "reload")
    assert ended.code == 3
    assert "did you mean 'stretch'?" in ended.err
    shown = (await operator("policy", "status")).out
    assert "the LAST CHANGE WAS REFUSED: In " in shown
    assert "in force   generation 1 'policy'" in shown


async def test_a_request_is_explained(cluster: Cluster, operator: Operator) -> None:
    async with cluster.worker("d0") as d0, cluster.worker("d1") as d1:
        await cluster.serving(d0, d1)
        prompt = pb.TokenIds(ids=[1] * 64)
        await cluster.generate(token_ids=prompt, request_id="r", stop={"max_tokens": 3})
    shown = (await operator("explain", "r")).out
    assert shown.startswith("request r: 64 prompt tokens, class 'default', policy 'policy' (gen")
    assert "\nfinished, first token after " in shown
    assert "\nrule 'priced': 'd" in shown
    header = next(line for line in shown.splitlines() if "decode" in line and "price" in line)
    assert header.split()[:4] == ["decode", "prefill", "fetches", "from"]
    assert {"wait", "prefill"} & set(header.split()[6:])
    assert "\n*  d" in shown
    assert "in hindsight " in shown
    same = await operator("policy", "explain", "r", "--json")
    assert [each["chosen"] for each in same.json["tries"][0]["candidates"]] == [True, False]
    unknown = await operator("explain", "unknown")
    assert unknown.code == 3
    assert "remembers no request of that id" in unknown.err


def test_serve_refuses_a_wrong_policy_before_anything_starts(
    penstock: Penstock, tmp_path: Path
) -> None:
    good = _file(tmp_path, 2.0)
    broken = tmp_path / "broken.yaml"
    broken.write_text(policy_text().replace("stretch", "strech"))
    ended = penstock("serve", "--policy", str(broken))
    assert (ended.code, ended.out) == (2, "")
    assert "did you mean 'stretch'?" in ended.err
    ended = penstock("serve", "--policy", str(good), "--disaggregate", "always")
    assert ended.code == 2
    assert "Give --disaggregate or --policy" in ended.err
    assert penstock("serve", "--policy", str(tmp_path / "none.yaml")).code == 2
