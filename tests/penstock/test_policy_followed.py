"""`penstock cluster diff -f FILE`: the policy that a cluster's file means, and those that its
routers follow."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from cluster.types import Role
from penstock.cli.placed_notes import PlacedNote, leave
from penstock.v1 import worker_pb2
from tests.doors import ask_cluster
from tests.penstock.command_line import Ended, Penstock
from tests.redis_server import free_port
from tests.router.checkpoint import write_checkpoint
from tests.router.cluster_of_fakes import Cluster
from tests.router.fake_worker import TOKEN
from tests.router.policy_texts import policy_text

FILE = "apiVersion: penstock/v1\nkind: Cluster\nmetadata: {name: lab}\nspec: "
Diff = Callable[..., Awaitable[Ended]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("PENSTOCK_ADDRESS", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where others leave notes, too


@pytest.fixture
async def routers(tmp_path: Path) -> AsyncIterator[list[Cluster]]:
    """Two that share no store, known to be 'lab'."""
    checkpoint = write_checkpoint(tmp_path)
    async with AsyncExitStack() as stack:
        both = [await stack.enter_async_context(Cluster(checkpoint, tmp_path)) for _ in range(2)]
        for name, role in (("decode-0", Role.DECODE), ("prefill-0", Role.PREFILL)):
            worker = await stack.enter_async_context(both[0].worker(name, role))
            await both[0].serving(worker)
        note(tmp_path, *(router.address for router in both))
        yield both


@pytest.fixture
def diff(penstock: Penstock, tmp_path: Path) -> Diff:
    """Of a file with this spec, in a thread: the routers live on this one's event loop."""

    async def call(spec: str, *options: str) -> Ended:
        path = tmp_path / "lab.yaml"
        path.write_text(f"{FILE}{spec}\n")
        return await asyncio.to_thread(penstock, "cluster", "diff", "-f", str(path), *options)

    return call


def note(folder: Path, *addresses: str) -> None:
    """As `penstock up` leaves it."""
    known = PlacedNote(
        name="lab",
        model="echo",
        routers=addresses,
        internal=addresses,
        secrets_file=str(folder / "secrets.yaml"),
    )
    leave(known, "")


async def apply(router: Cluster, text: str, share: float | None = None) -> None:
    request = worker_pb2.ApplyPolicyRequest(text=text, source="ops.yaml", canary_share=share)
    await ask_cluster(router.channel, "ApplyPolicy", request, TOKEN)


async def test_what_was_applied_is_compared_with_the_files_policy(
    routers: list[Cluster], diff: Diff, tmp_path: Path
) -> None:
    (tmp_path / "policy.yaml").write_text(policy_text(2.0))
    ended = await diff("{}")
    assert (ended.code, ended.out) == (0, "")
    for router in routers:
        await apply(router, policy_text(7.0))
    ended = await diff("{policyFile: policy.yaml}")
    assert (ended.code, ended.out) == (1, "spec.queue.stretch: 2.0 -> 7.0\n")
    assert "follow generation 2 'p' (" in ended.err
    assert "from ops.yaml" in ended.err
    ended = await diff("{}")
    assert ended.out == "metadata.name: default -> p\nspec.queue.stretch: 1.0 -> 7.0\n"
    (tmp_path / "policy.yaml").write_text(policy_text(7.0))
    assert (await diff("{policyFile: policy.yaml}"))[:2] == (0, "")


async def test_routers_that_follow_different_policies_are_told_apart(
    routers: list[Cluster], diff: Diff
) -> None:
    one, other = routers
    await apply(one, policy_text(7.0))
    await apply(one, policy_text(8.0, name="tried"), share=0.05)
    ended = await diff("{}")
    assert ended.code == 1
    head, *changes, last = ended.out.splitlines()
    assert head.startswith(f"{one.address} follows generation 2 'p' (")
    assert ", and tries out generation 3 'tried' (" in head
    assert changes == ["  metadata.name: default -> p", "  spec.queue.stretch: 1.0 -> 7.0"]
    assert last.startswith(f"{other.address} follows generation 1 'default' (")
    found = (await diff("{}", "--json")).json["policies"]
    assert [each["routers"] for each in found] == [[one.address], [other.address]]
    assert [len(each["changes"]) for each in found] == [2, 0]
    assert [each["canary"] and each["canary"]["name"] for each in found] == ["tried", None]


async def test_a_canary_alone_is_a_difference(routers: list[Cluster], diff: Diff) -> None:
    for router in routers:
        await apply(router, policy_text(8.0, name="tried"), share=0.05)
    ended = await diff("{}")
    assert (ended.code, ended.out) == (1, "")
    assert "and try out generation 2 'tried' (" in ended.err


async def test_a_router_that_does_not_answer_is_named(
    routers: list[Cluster], diff: Diff, tmp_path: Path
) -> None:
    gone = f"127.0.0.1:{free_port()}"
    note(tmp_path, routers[0].address, gone)
    ended = await diff("{}")
    assert (ended.code, ended.out) == (4, "")
    assert f"{gone} does not answer" in ended.err
    assert f"{routers[0].address} follows generation 1" in ended.err
    assert (await diff("{}", "-a", routers[0].address)).code == 0
    note(tmp_path, gone)
    assert (await diff("{}")).code == 4


async def test_what_cannot_be_compared_is_refused_with_the_way(
    routers: list[Cluster], diff: Diff, penstock: Penstock, tmp_path: Path
) -> None:
    ended = await diff("{policyFile: none.yaml}")
    assert ended.code == 2
    assert f"'{tmp_path}/none.yaml' cannot be read" in ended.err
    unknown = tmp_path / "other.yaml"
    unknown.write_text(FILE.replace("lab", "other") + "{}\n")
    ended = penstock("cluster", "diff", "-f", str(unknown))
    assert ended.code == 4
    assert "No cluster 'other' is known here" in ended.err
    assert "--address" in ended.err
    for wrong in (("-f", str(unknown), str(unknown)), (str(unknown),), ()):
        ended = penstock("cluster", "diff", *wrong)
        assert ended.code == 2
        assert "Give two descriptions, or '--file'" in ended.err
