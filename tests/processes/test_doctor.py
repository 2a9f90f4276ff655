"""The doctor's visit to real processes: well, frozen, and well again."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.launcher import LocalCluster
from tests.processes.echo_cluster import running

pytestmark = [pytest.mark.prove, pytest.mark.alone, pytest.mark.timeout(120)]


async def doctor(cluster: LocalCluster, folder: Path) -> tuple[int | None, dict[str, Any]]:
    """The exit code, and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "penstock", "doctor", "--json", "--timeout", "30"),
        *("--address", cluster.address, "--secrets-file", str(cluster.secrets_file)),
        env={**os.environ, "HOME": str(folder)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return process.returncode, json.loads(out)


async def test_it_moves_bytes_between_every_pair_and_knows_which_is_broken(tmp_path: Path) -> None:
    async with running(tmp_path, num_prefill=2) as (cluster, _):
        code, said = await doctor(cluster, tmp_path)
        assert code == 0, said
        pairs = {pair["source"]: pair for pair in said["pairs"]}
        assert pairs.keys() == {"prefill-0", "prefill-1"}
        for pair in pairs.values():
            assert pair["severity"] != "fail"
            assert pair["transport"] == "shared_memory"
            assert pair["num_bytes"] > 0
            assert pair["bytes_per_second"] > 0
            assert 0 < pair["latency_seconds"] < 5
        subjects = {each["subject"] for each in said["findings"]}
        assert {"router", "decode-0", "prefill-0", "prefill-1", "cluster"} <= subjects

        frozen = cluster.children["prefill-1"]
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            code, said = await doctor(cluster, tmp_path)
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
        assert code == 8
        verdicts = {pair["source"]: pair["severity"] for pair in said["pairs"]}
        # The router forgets a silent worker after a while: then it has no pairs.
        assert verdicts.get("prefill-1", "fail") == "fail"
        assert verdicts["prefill-0"] != "fail", "the other pair is still measured"
        broken = [each for each in said["findings"] if each["severity"] == "fail"]
        assert {each["subject"] for each in broken} == {"prefill-1"}
        assert all(each["fix"] for each in broken)
