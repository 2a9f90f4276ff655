"""A setting like a running cluster: its sizes, memory and costs."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.types import (
    DecodeCost,
    Fingerprint,
    Incarnation,
    KvLayout,
    LinkCost,
    LoadReport,
    Member,
    PrefillCost,
    Role,
    WorkerAddress,
    WorkerId,
)
from penstock.cli.app import run
from simulator.fitted import Reported, fitted
from simulator.setting import Setting
from tests.router.checkpoint import write_checkpoint
from tests.workers.local_cluster import LocalCluster

LAYOUT = KvLayout(num_layers=4, num_blocks=100, block_size=16, num_kv_heads=2, head_dim=8)
KNOWS = LoadReport(
    num_blocks=100,
    prefill_cost=PrefillCost(c0=0.01, c1=1e-4),
    decode_cost=DecodeCost(d0=0.02),
)
WORKLOAD = (
    "fan_outs: {num_prompts: 2, num_siblings: 2, shared_tokens: 64, own_tokens: 16,"
    " output_tokens: 4, grain: 16}"
)


def worker(name: str, role: Role = Role.DECODE, report: LoadReport = KNOWS) -> Reported:
    fingerprint = Fingerprint(
        model_digest="m", tokenizer_digest="", template_digest="", hash_grain=16, layout=LAYOUT
    )
    address = WorkerAddress(
        worker_id=WorkerId(name),
        incarnation=Incarnation(f"{name}#0"),
        address="",
        transports={},
        fingerprint=fingerprint,
    )
    member = Member(worker=address, role=role, model="m", context_length=512, max_sequences=7)
    return member, report


BASE = Setting(num_prefill=4, num_decode=4)


def test_sizes_memory_costs_and_links_are_the_clusters() -> None:
    link = LinkCost(peer=WorkerId("prefill-0"), setup_s=0.003, s_per_byte=1e-9)
    slow = replace(KNOWS, prefill_cost=PrefillCost(c0=0.03, c1=3e-4), links=(link,))
    slower = replace(KNOWS, prefill_cost=PrefillCost(c0=0.09, c1=9e-4))
    workers = [worker("prefill-0", Role.PREFILL), worker("decode-0")]
    workers += [worker("decode-1", report=slow), worker("decode-2", report=slower)]
    setting = fitted(BASE, workers)
    assert (setting.num_prefill, setting.num_decode) == (1, 3)
    assert setting.prefill.prefill_cost == KNOWS.prefill_cost
    assert setting.decode.prefill_cost == slow.prefill_cost  # the one in the middle
    assert setting.decode.cache_tokens == 1600
    assert setting.decode.max_sequences == 7
    assert setting.model.token_bytes == 2 * 4 * LAYOUT.slot_bytes
    assert setting.link.setup_s == 0.003
    assert setting.link.bytes_per_s == pytest.approx(1e9)
    assert setting.message_s == BASE.message_s


def test_a_cluster_that_knows_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match="No decode worker"):
        fitted(BASE, [worker("prefill-0", Role.PREFILL)])
    with pytest.raises(ConfigError, match="send them some requests"):
        fitted(BASE, [worker("decode-0", report=LoadReport(num_blocks=100))])


@pytest.mark.slow
async def test_the_command_asks_a_running_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["simulate", "--workload", WORKLOAD, "--json"]
    async with LocalCluster(
        write_checkpoint(tmp_path), tmp_path, decode=[{}, {}], prefill=[{}]
    ) as cluster:
        arguments += ["--like", cluster.address]
        arguments += ["--secrets-file", str(tmp_path / "secrets.yaml")]

        def call() -> int:
            with pytest.raises(SystemExit) as ended:
                run(arguments)
            return int(ended.value.code or 0)

        assert await asyncio.to_thread(call) == 0
    [report] = json.loads(capsys.readouterr().out)
    assert report["setting"]["num_decode"] == 2
    assert report["setting"]["decode"]["cache_tokens"] == 64 * 16
    assert report["num_finished"] == 4
