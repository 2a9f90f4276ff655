"""`python -m router --config FILE`: one router process."""

import argparse
import asyncio
import gc
import logging
import signal
import sys
from pathlib import Path

from cluster.config import effective_config, load_config
from cluster.process import configure_logging, print_ready, run
from router.config import RouterConfig
from router.router import Router

logger = logging.getLogger("router")


def _ready(address: str, internal: str) -> None:
    # What has been loaded stays: a full collection walks what requests leave, and no more.
    gc.collect()
    gc.freeze()
    print_ready(role="router", address=address, **({"internal": internal} if internal else {}))


def main() -> int:
    parser = argparse.ArgumentParser(prog="router", description="Penstock's router.")
    parser.add_argument("--config", type=Path, required=True, help="a YAML file: RouterConfig")
    arguments = parser.parse_args()

    async def serve(drain: asyncio.Event) -> None:
        config = load_config(RouterConfig, arguments.config)
        configure_logging(config)
        logger.info("configuration: %s", effective_config(config))
        router = Router(config)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, router.policy.ask_reload)
        await router.run(drain, lambda address: _ready(address, router.internal_address))

    return run(serve)


if __name__ == "__main__":
    sys.exit(main())
