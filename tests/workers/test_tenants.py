"""Tenants share workers and no cache: the same prompt of another tenant finds nothing, in the
engine, in what workers tell routers, in the router's index, and by no fetch. Keys are shown at the
front door; router, workers and transfers are the real ones."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from cluster.block_hash import grain_hashes, hash_key
from cluster.types import GrainHash
from engine.checkpoint import load_spec
from penstock.v1 import inference_pb2 as pb
from router.callers.key_file import new_key
from tests.checkpoints import checkpoint as model
from tests.exactness.ways import torch_engine
from tests.router.cluster_of_fakes import HASH_SECRET
from tests.router.keyed import entry, shown, write_keys
from tests.workers.answers import prompt_of
from tests.workers.decoding import decode
from tests.workers.fetching import counted, ids, request
from tests.workers.local_cluster import LocalCluster

PROMPT = prompt_of(4, 100)
GRAINS = 6  # complete ones of the prompt
ACME, RIVAL = new_key(), new_key()


def keys_in(directory: Path) -> Path:
    return write_keys(directory / "keys.json", entry(ACME), entry(RIVAL, "rival"))


@pytest.fixture(params=["local", "remote"])
async def cluster(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path
) -> AsyncIterator[LocalCluster]:
    """One decode worker, which computes prompts itself, or has another compute them."""
    is_remote = request.param == "remote"
    async with LocalCluster(
        checkpoint,
        tmp_path,
        prefill=[{}] if is_remote else [],
        disaggregate="always" if is_remote else "never",
        keys_file=keys_in(tmp_path),
    ) as cluster:
        yield cluster


async def cached(
    cluster: LocalCluster, key: str, *, prompt: list[int] = PROMPT, **fields: str
) -> int:
    """How many tokens of the prompt were cached, as the caller is told."""
    asked = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), **fields)  # type: ignore[arg-type]
    asked.stop.max_tokens, asked.stop.ignore_eos = 4, True
    answer = await cluster.generate(asked, metadata=shown(key), timeout_s=60)
    assert answer.is_complete
    return answer.messages[-1].finished.usage.cached_tokens


def hashes_of(cluster: LocalCluster, tenant: str) -> list[GrainHash]:
    digest = cluster.router.fleet.identity.model_digest
    key = hash_key(HASH_SECRET, tenant=tenant, cache_scope="", model_digest=digest)
    return grain_hashes(key, PROMPT, 16)


async def test_the_same_prompt_of_another_tenant_is_computed_anew(cluster: LocalCluster) -> None:
    computing = cluster.prefill[0] if cluster.prefill else cluster.decode[0]
    assert await cached(cluster, ACME) == 0
    assert await cached(cluster, ACME) == 96
    before = counted(computing, "computed_tokens")
    assert await cached(cluster, RIVAL) == 0
    assert counted(computing, "computed_tokens") - before >= 100
    assert await cached(cluster, RIVAL) == 96
    assert await cached(cluster, ACME) == 96


async def test_nor_does_a_scope_or_a_session_lead_there(cluster: LocalCluster) -> None:
    """What a caller can name, and the length-prefixed encoding of it, never is another's."""
    await cached(cluster, ACME, cache_scope="shared", session_key="s")
    assert await cached(cluster, ACME, cache_scope="shared", session_key="s") == 96
    assert await cached(cluster, RIVAL, cache_scope="shared", session_key="s") == 0
    for scope in ("acme", "acmeshared", "sharedacme"):
        assert await cached(cluster, RIVAL, cache_scope=scope) == 0


async def test_events_and_index_keep_tenants_apart(cluster: LocalCluster) -> None:
    await cached(cluster, ACME)
    mine, theirs = hashes_of(cluster, "acme"), hashes_of(cluster, "rival")
    assert not {*mine} & {*theirs}

    def known(hashes: list[GrainHash]) -> int:
        """Leading grains that some worker holds."""
        return max((num for num, _ in cluster.router.index.match(hashes)), default=0)

    await cluster.until(lambda: known(mine) == GRAINS)
    assert known(theirs) == 0
    await cached(cluster, RIVAL)
    await cluster.until(lambda: known(theirs) == GRAINS)
    assert known(mine) == GRAINS


async def test_nothing_of_another_tenant_is_fetched(checkpoint: Path, tmp_path: Path) -> None:
    async with LocalCluster(
        checkpoint, tmp_path, decode=[{}, {}], prefill=[], keys_file=keys_in(tmp_path)
    ) as cluster:
        source, receiver = cluster.decode
        mine, theirs = request(), request(source=source)
        mine.tenant, theirs.tenant = "acme", "rival"
        answer = ids(await decode(source, mine))
        messages = await decode(receiver, theirs)  # even where a router would name a source
        assert (messages[0].accepted.cached_tokens, ids(messages)) == (0, answer)
        assert counted(receiver, "fetched_tokens") == counted(source, "lent_tokens") == 0
        theirs.tenant, theirs.request_id = "acme", "once more"
        messages = await decode(receiver, theirs)
        assert (messages[0].accepted.cached_tokens, ids(messages)) == (96, answer)
        assert counted(source, "lent_tokens") >= 96


@pytest.mark.slow
async def test_no_tenant_hits_anothers_blocks_in_a_real_engine(tmp_path: Path) -> None:
    prompt = [2 + i % 50 for i in range(100)]
    async with LocalCluster(
        model("llama"),
        tmp_path,
        decode=[{}],
        prefill=[{}],
        make_engine=partial(torch_engine, "llama"),
        layout=load_spec(model("llama")).kv_layout,
        disaggregate="always",
        keys_file=keys_in(tmp_path),
    ) as cluster:
        found = [await cached(cluster, key, prompt=prompt) for key in (ACME, RIVAL, ACME, RIVAL)]
    assert found == [0, 0, 96, 96]
