"""`python -m deploy.planner --config FILE`: the planner of a cluster on a Ray, one process."""

import asyncio
import os
import socket
import sys
from contextlib import redirect_stdout

from cluster.command import run_configured
from cluster.health import HealthState
from cluster.process import print_ready
from cluster.rpc import Server
from deploy.planner.config import PlannerConfig
from deploy.planner.process import planning, tell_config


async def serve(config: PlannerConfig, end: asyncio.Event) -> None:
    health, name = HealthState(), f"{socket.gethostname()}:{os.getpid()}"
    # Kept: while Ray is connected all that is printed goes where errors do.
    with os.fdopen(os.dup(1), "w") as stdout:
        async with Server([], address=config.address, health=health) as server:
            health.set_all(True)
            async with planning(config, name=name) as loop:
                with redirect_stdout(stdout):
                    print_ready(role="planner", address=server.address)
                await loop.run(end)


if __name__ == "__main__":
    sys.exit(run_configured("deploy.planner", __doc__, PlannerConfig, serve, tell=tell_config))
