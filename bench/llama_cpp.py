"""llama.cpp as a peer, through its Python bindings: weights and KV in float32."""

import os
import subprocess
from pathlib import Path

from bench.peers import ROOT, EnginePeer, make_environment

ENVIRONMENT = ROOT / ".venv-llama-cpp"
BINDINGS = "llama-cpp-python==0.3.36"
LEFT_OUT = "LLAVA_BUILD", "LLAMA_CURL", "LLAMA_BUILD_TOOLS", "LLAMA_BUILD_EXAMPLES"


def make() -> None:
    """Compiles for this processor: a quarter of an hour. Raises PeerUnavailable."""
    make_environment(ENVIRONMENT, BINDINGS, _install)


def _install(pip: list[str]) -> None:
    flags = " ".join(["-DGGML_NATIVE=ON", *(f"-D{each}=OFF" for each in LEFT_OUT)])
    subprocess.run([*pip, "gguf", "safetensors"], check=True)
    settings = {**os.environ, "CMAKE_ARGS": flags}
    subprocess.run([*pip, BINDINGS], check=True, env=settings)


def start(checkpoint: Path, *, threads: int) -> EnginePeer:
    """Raises PeerUnavailable."""
    return EnginePeer("llama-cpp", ENVIRONMENT, checkpoint, str(threads), settings={})
