"""`python -m deploy.planner --config FILE`: the planner of a cluster on a Ray, one process."""

import argparse
import asyncio
import logging
import os
import socket
import sys
from contextlib import redirect_stdout
from pathlib import Path

from cluster.config import effective_config, load_config
from cluster.health import HealthState
from cluster.process import configure_logging, print_ready, run
from cluster.rpc import Server
from deploy.planner.config import PlannerConfig
from deploy.planner.process import planning

logger = logging.getLogger("planner")


async def _serve(config: PlannerConfig, end: asyncio.Event) -> None:
    health, name = HealthState(), f"{socket.gethostname()}:{os.getpid()}"
    # Kept: while Ray is connected all that is printed goes where errors do.
    with os.fdopen(os.dup(1), "w") as stdout:
        async with Server([], address=config.address, health=health) as server:
            health.set_all(True)
            async with planning(config, name=name) as loop:
                with redirect_stdout(stdout):
                    print_ready(role="planner", address=server.address)
                await loop.run(end)


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy.planner", description="Penstock's planner.")
    parser.add_argument("--config", type=Path, required=True, help="a YAML file: PlannerConfig")
    arguments = parser.parse_args()

    async def serve(drain: asyncio.Event) -> None:
        config = load_config(PlannerConfig, arguments.config)
        configure_logging(config)
        logger.info("configuration: %s", effective_config(config))
        await _serve(config, drain)

    return run(serve)


if __name__ == "__main__":
    sys.exit(main())
