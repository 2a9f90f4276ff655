"""A decode worker whose step loop hears no wake-up between SIGUSR1 and SIGUSR2."""

import asyncio
import signal
import sys
from typing import Any

from cluster.command import run_configured
from cluster.types import Role
from decode_worker.config import DecodeWorkerConfig
from decode_worker.worker import DecodeWorker
from worker.parts import build_parts


def build(config: DecodeWorkerConfig) -> DecodeWorker:
    worker = DecodeWorker(config, build_parts(config, Role.DECODE))
    loop: Any = worker._loop
    hear = loop.wake

    def lose(*_: object) -> None:
        loop.wake = lambda: None

    def hear_again(*_: object) -> None:
        loop.wake = hear
        hear()

    signal.signal(signal.SIGUSR1, lose)
    signal.signal(signal.SIGUSR2, hear_again)
    return worker


async def serve(config: DecodeWorkerConfig, end: asyncio.Event) -> None:
    await build(config).serve(end)


if __name__ == "__main__":
    sys.exit(run_configured("deaf_worker", __doc__, DecodeWorkerConfig, serve))
