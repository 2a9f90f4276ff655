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


def tell_whole(settings: LogSettings) -> None:
    logger.info("configuration: %s", effective_config(settings))


def run_configured(
    name: str,
    usage: str | None,
    config: type[C],
    serve: Callable[[C, asyncio.Event], Coroutine[Any, Any, object]],
    *,
    tell: Callable[[C], object] = tell_whole,
) -> int:
    """Runs a process as its file says, until it has drained, and returns the exit code.

    A configuration that is wrong is a sentence on stderr. `tell` logs one that is not.
    """
    parser = argparse.ArgumentParser(prog=name, description=usage)
    parser.add_argument(
        "--config", type=Path, required=True, help=f"a YAML file: {config.__name__}"
    )
    path = parser.parse_args().config

    async def main(drain: asyncio.Event) -> None:
        settings = load_config(config, path)
        process.configure_logging(settings)
        tell(settings)
        await serve(settings, drain)

    return process.run(main)
