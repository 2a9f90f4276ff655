"""`python -m decode_worker --config FILE`: one decode worker."""

import sys
from pathlib import Path

from cluster.tokenizer import Tokenizer
from cluster.types import Role
from decode_worker.config import DecodeWorkerConfig
from decode_worker.worker import DecodeWorker
from worker.parts import build_parts
from worker.process import run_worker


def build(config: DecodeWorkerConfig) -> DecodeWorker:
    """Loads the model and warms it up."""
    parts = build_parts(config, Role.DECODE, wire_dtype=config.wire_dtype)
    return DecodeWorker(config, parts, tokenizer=Tokenizer.load(Path(config.checkpoint)))


if __name__ == "__main__":
    sys.exit(run_worker("decode_worker", __doc__, DecodeWorkerConfig, build))
