"""`python -m router --config FILE`: one router process."""

import asyncio
import gc
import signal
import sys

from cluster.command import run_configured
from cluster.process import print_ready
from router.config import RouterConfig
from router.router import Router


async def serve(config: RouterConfig, drain: asyncio.Event) -> None:
    router = Router(config)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, router.policy.ask_reload)
    await router.run(drain, lambda address: _ready(address, router.internal_address))


def _ready(address: str, internal: str) -> None:
    # What has been loaded stays: a full collection walks what requests leave, and no more.
    gc.collect()
    gc.freeze()
    print_ready(role="router", address=address, **({"internal": internal} if internal else {}))


if __name__ == "__main__":
    sys.exit(run_configured("router", __doc__, RouterConfig, serve))
