"""`python -m ROLE_worker --config FILE`: from the command line to a worker that serves."""

import argparse
import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from cluster import process
from cluster.config import effective_config, load_config
from worker.config import WorkerConfig

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=WorkerConfig)


class Serves(Protocol):
    async def serve(self, end: asyncio.Event) -> object: ...


def run_worker(name: str, usage: str | None, config: type[C], build: Callable[[C], Serves]) -> int:
    """Returns the exit code. A configuration that is wrong is a sentence on stderr."""
    parser = argparse.ArgumentParser(prog=name, description=usage)
    parser.add_argument("--config", type=Path, required=True, help="its YAML")
    path = parser.parse_args().config

    async def serve(drain: asyncio.Event) -> None:
        settings = load_config(config, path)
        process.configure_logging(settings)
        logger.info("configuration: %s", effective_config(settings))
        await build(settings).serve(drain)

    return process.run(serve)
