"""Waits for what routers say of who serves: blocking, for commands. The routers are named by where
each hears calls of the cluster."""

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from cluster.errors import PenstockError, StartupError
from cluster.lateness import Patience
from cluster.secrets import Secrets, load_secrets
from deploy.vitals import Enough, all_of, serving, until_serving

ASK_S: Final = 5.0  # who is taken for silent may be the last that serves
RETRY_S: Final = 0.2


def until_served(
    routers: Sequence[str], workers: Collection[str], secrets_file: Path, timeout_s: float
) -> None:
    """Returns when every router sends requests to every worker that nobody has told to drain.
    Raises StartupError."""
    if not _until(routers, all_of(workers), secrets_file, timeout_s):
        raise StartupError(
            f"All processes are ready, but after {timeout_s:g} s not every router uses all workers:"
            " 'penstock status' says why."
        )


def until_any_serves(
    routers: Sequence[str], workers: Collection[str], secrets_file: Path, timeout_s: float
) -> bool:
    """Returns when every router sends requests to one of these at least, or False after the
    time."""
    some = set(workers)
    return _until(routers, lambda serving, _: not some.isdisjoint(serving), secrets_file, timeout_s)


def serving_now(routers: Sequence[str], secrets_file: Path) -> dict[str, set[str]]:
    """The workers that each router sends requests to, of those routers that answer."""
    secrets = load_secrets(secrets_file)

    async def ask(router: str) -> set[str] | None:
        try:
            async with Patience(ASK_S):
                return await serving(router, secrets)
        except (PenstockError, TimeoutError):
            return None

    async def ask_all() -> Sequence[set[str] | None]:
        return await asyncio.gather(*map(ask, routers))

    answers = zip(routers, asyncio.run(ask_all()), strict=True)
    return {router: answer for router, answer in answers if answer is not None}


def _until(routers: Sequence[str], enough: Enough, secrets_file: Path, timeout_s: float) -> bool:
    secrets = load_secrets(secrets_file)
    try:
        asyncio.run(_all_say(routers, enough, secrets, timeout_s))
    except TimeoutError:
        return False
    return True


async def _all_say(
    routers: Sequence[str], enough: Enough, secrets: Secrets, timeout_s: float
) -> None:
    async with Patience(timeout_s):
        await asyncio.gather(*(_says(each, enough, secrets) for each in routers))


async def _says(router: str, enough: Enough, secrets: Secrets) -> None:
    """Asks again a router that went, and is started again."""
    while True:
        try:
            return await until_serving(router, secrets, enough)
        except PenstockError:
            await asyncio.sleep(RETRY_S)
