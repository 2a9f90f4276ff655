"""A router in a process of its own."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.types import Fingerprint, KvLayout
from router.config import RouterConfig
from router.front.text import Text
from tests.router.fake_worker import TOKEN

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class RouterProcess:
    process: asyncio.subprocess.Process
    ready: dict[str, Any]

    @property
    def address(self) -> str:
        return str(self.ready["address"])

    @property
    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    @property
    def cpu_s(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100


def write_config(directory: Path, checkpoint: Path, /, **settings: Any) -> Path:
    secrets_file = directory / "secrets.yaml"
    secrets_file.write_text(yaml.safe_dump({"cluster_token": TOKEN, "hash_secret": "00" * 16}))
    secrets_file.chmod(0o600)
    config = directory / "router.yaml"
    values = {"checkpoint": str(checkpoint), "model": "echo", "secrets_file": str(secrets_file)}
    config.write_text(yaml.safe_dump({**values, **settings}))
    return config


async def start(config: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "--config", str(config)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def router_process(config: Path) -> AsyncIterator[RouterProcess]:
    process = await start(config)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
        assert line, (await process.communicate())[1].decode()
        yield RouterProcess(process, json.loads(line))
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def fingerprint(checkpoint: Path) -> Fingerprint:
    config = RouterConfig(checkpoint=checkpoint, model="echo", secrets_file=checkpoint)
    identity = Text.load(config, b"secret").identity
    return Fingerprint(
        model_digest=identity.model_digest,
        tokenizer_digest=identity.tokenizer_digest,
        template_digest=identity.template_digest,
        hash_grain=identity.hash_grain,
        layout=KvLayout(num_layers=2, num_blocks=1000, block_size=16, num_kv_heads=2, head_dim=8),
    )
