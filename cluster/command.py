"""`python -m PART --config FILE`: from the command line to a process that serves."""

import argparse
import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from cluster import process
from cluster.config import effective_config, load_config
from cluster.log import LogSettings

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=LogSettings)


def run_configured(
    name: str,
    usage: str | None,
    config: type[C],
    serve: Callable[[C, asyncio.Event], Coroutine[Any, Any, object]],
) -> int:
    """Runs a process as its file says, until it has drained, and returns the exit code.

    A configuration that is wrong is a sentence on stderr.
    """
    parser = argparse.ArgumentParser(prog=name, description=usage)
    parser.add_argument(
        "--config", type=Path, required=True, help=f"a YAML file: {config.__name__}"
    )
    path = parser.parse_args().config

    async def main(drain: asyncio.Event) -> None:
        settings = load_config(config, path)
        process.configure_logging(settings)
        logger.info("configuration: %s", effective_config(settings))
        await serve(settings, drain)

    return process.run(main)
