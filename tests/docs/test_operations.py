"""docs/operations.md, done: its files and commands make a cluster of processes that nobody
supervises, each at an address of its own."""

import configparser
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from cluster.types import KvLayout
from deploy.plan import MODULES, Part
from router.config import RouterConfig
from tests.docs.pages import PAGES, ROOT, Block, blocks
from tests.docs.shims import make_shims
from tests.redis_server import redis_server

PAGE = "docs/operations.md"
BY_HAND = ROOT / "deploy" / "by_hand"
ANSWER = "Return the number of items in a container.\n"


def block_with(text: str) -> Block:
    [found] = [each for each in blocks() if each.page == PAGE and text in each.text]
    return found


@dataclass(slots=True)
class Site:
    """Three machines on this one: loopback addresses and directories stand for theirs."""

    directory: Path
    run_dir: Path
    network: str = field(default_factory=lambda: f"127.{random.randint(1, 254)}.99.")
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def here(self, text: str) -> str:
        for there, here in (
            ("/srv/penstock/models/my-model", str(ROOT / "shipped_model" / "penstock-tiny")),
            ("/etc/penstock", str(self.directory)),
            ("/var/lib/penstock", str(self.directory)),
            ("/dev/shm/penstock", str(self.run_dir)),
            ("10.0.0.", self.network),
        ):
            text = text.replace(there, here)
        return text

    def write(self, name: str, **more: object) -> None:
        """A process's file: as it is shown, and what a later section adds."""
        values = yaml.safe_load(self.here((BY_HAND / name).read_text()))
        (self.directory / name).write_text(yaml.safe_dump({**values, **more}))

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.directory / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(self.directory)}

    def start(self, name: str, command: str) -> None:
        with (self.directory / f"{name}.log").open("w") as log:
            self.processes[name] = subprocess.Popen(
                ["bash", "-c", f"exec {self.here(command)}"],
                cwd=self.directory,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def until_ready(self) -> None:
        for name, process in self.processes.items():
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (self.directory / f"{name}.log").read_text()[-2000:]
            assert json.loads(line)["ready"] is True

    def drain(self) -> dict[str, int]:
        """Their exit codes: workers first, and then the router."""
        codes = {}
        for name, process in reversed(self.processes.items()):
            process.send_signal(signal.SIGTERM)
            codes[name] = process.wait(30)
        return codes

    def ask(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-ec", self.here(command)],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    make_shims(tmp_path / "bin")
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else tmp_path
    run_dir = Path(tempfile.mkdtemp(prefix="by-hand-", dir=parent))
    found = Site(tmp_path, run_dir)
    try:
        yield found
    finally:
        for process in found.processes.values():
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        shutil.rmtree(run_dir)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_processes_started_by_hand_are_a_cluster(site: Site) -> None:
    [draw] = block_with("penstock secrets secrets.yaml").commands
    assert site.ask(draw).returncode == 0
    for name in ("router", "prefill_worker", "decode_worker"):
        site.write(f"{name}.yaml", **({} if name == "router" else {"transports": ["tcp"]}))
    for command in block_with("python -m router").commands:
        site.start(command.split()[2], command)
    site.until_ready()

    status, doctor, generate = block_with("penstock status -a").commands
    ended = site.ask(status)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "prefill-a" in ended.stdout
    assert "decode-a" in ended.stdout
    ended = site.ask(doctor)
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"prefill-a +decode-a +tcp ", ended.stdout)
    assert site.ask(generate).stdout == ANSWER
    assert site.drain() == {"router": 0, "prefill_worker": 0, "decode_worker": 0}
    assert list(site.run_dir.iterdir()) == []


@pytest.mark.prove
@pytest.mark.timeout(180)
async def test_two_routers_share_a_redis(site: Site) -> None:
    """With what the section changes: `store` in routers' files, `router` in workers'."""
    async with redis_server() as redis:
        site.ask(block_with("penstock secrets secrets.yaml").commands[0])
        site.write("router.yaml", store=redis.url)
        for name in ("prefill_worker", "decode_worker"):
            site.write(f"{name}.yaml", router=redis.url)
        for command in block_with("python -m router").commands:
            site.start(command.split()[2], command)
        other, inside = f"{site.network}4:50051", f"{site.network}4:50052"
        config = yaml.safe_load((site.directory / "router.yaml").read_text())
        config |= {"address": other, "internal": inside}
        (site.directory / "other.yaml").write_text(yaml.safe_dump(config))
        site.start("other", "python -m router --config other.yaml")
        site.until_ready()
        generate = block_with("penstock status -a").commands[2]
        assert site.ask(generate).stdout == ANSWER
        assert site.ask(generate.replace("10.0.0.1:50051", other)).stdout == ANSWER


def test_the_decode_workers_file_differs_as_is_said() -> None:
    prefill, decode = (
        yaml.safe_load((BY_HAND / name).read_text())
        for name in ("prefill_worker.yaml", "decode_worker.yaml")
    )
    differ = {key for key in {*prefill, *decode} if prefill.get(key) != decode.get(key)}
    assert differ == {"worker_id", "address"}


def test_the_unit_starts_each_module() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((ROOT / "deploy/systemd/penstock@.service").read_text())
    service = unit["Service"]
    for part in set(Part) - {Part.PLANNER}:  # which 'penstock up' places
        module = MODULES[part]
        program, *arguments = service["ExecStart"].replace("%i", module).split()
        assert program == "/srv/penstock/.venv/bin/python"
        assert arguments == ["-m", module, "--config", f"/etc/penstock/{module}.yaml"]
        assert (ROOT / module / "__main__.py").exists()
        assert (BY_HAND / f"{module}.yaml").exists()
    [drain] = [each for each in dataclasses.fields(RouterConfig) if each.name == "drain_s"]
    assert int(service["TimeoutStopSec"]) > drain.default + 5


def test_sizes_are_those_of_pools() -> None:
    rows = re.findall(
        r"^\| ([\w.-]+).* \| (\d+) \| (\d+) \| (\d+) \| (\d+) KiB \| ([\d,]+) MiB \|$",
        PAGES[PAGE],
        re.MULTILINE,
    )
    assert [row[0] for row in rows] == ["penstock-tiny", "Qwen2.5-0.5B", "Llama-3.1-8B"]
    for _, layers, heads, head_dim, token_kib, pool_mib in rows:
        layout = KvLayout(
            num_layers=int(layers),
            num_blocks=1024,
            block_size=16,
            num_kv_heads=int(heads),
            head_dim=int(head_dim),
        )
        assert layout.pool_bytes == int(pool_mib.replace(",", "")) << 20
        assert layout.pool_bytes == 1024 * 16 * int(token_kib) << 10


def test_what_is_seen_at_night_is_what_the_code_says() -> None:
    """Each quoted sentence, up to what varies in it, is in the source."""
    _, _, night = PAGES[PAGE].partition("## At night")
    rows = re.findall(r"^\| (.*?) \|", night.partition("## Every key")[0], re.MULTILINE)
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 20
    folders = ("cluster", "deploy", "decode_worker", "engine", "kv_transfer", "penstock")
    folders += ("router", "worker")
    source = "".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text())
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    )
    pieces = [piece.strip() for text in quoted for piece in text.split("…")]
    assert [piece for piece in pieces if len(piece) > 1 and piece not in source] == []


@pytest.mark.slow
@pytest.mark.parametrize("router", ["127.0.0.1:1", "redis://127.0.0.1:1/0"])
def test_a_worker_that_waits_for_its_router_ends_when_it_is_told_to(
    site: Site, router: str
) -> None:
    site.ask(block_with("penstock secrets secrets.yaml").commands[0])
    site.write("decode_worker.yaml", router=router, engine="echo")
    process = subprocess.Popen(
        [sys.executable, "-m", "decode_worker", "--config", "decode_worker.yaml"],
        cwd=site.directory,
        env=site.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    site.processes["decode_worker"] = process
    assert process.stderr is not None
    with process.stderr as said:
        assert any("not registered, trying on" in line for line in said)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    assert list(site.run_dir.iterdir()) == []
