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
    await router.run(drain, lambda address: _ready(address, router))


def _ready(address: str, router: Router) -> None:
    # What has been loaded stays: a full collection walks what requests leave, and no more.
    gc.collect()
    gc.freeze()
    others = {
        "internal": router.internal_address,
        "http": router.http_address,
        "metrics": router.metrics_address,
    }
    print_ready(role="router", address=address, **{key: at for key, at in others.items() if at})


if __name__ == "__main__":
    sys.exit(run_configured("router", __doc__, RouterConfig, serve))
