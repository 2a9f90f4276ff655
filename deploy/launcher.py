"""Starts, supervises and drains the processes of a cluster on this machine.

A dead process is started again, a frozen one is killed first (until then no one may reuse
memory that it writes). Knows nothing of requests.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.errors import StartupError
from cluster.secrets import create_secrets
from deploy.child import Child, tail
from deploy.plan import ClusterPlan, Part, ProcessPlan
from deploy.run_dir import RunDir
from deploy.vitals import until_all_serve, until_frozen
from kv_transfer.pool import sweep as sweep_pools


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """Time limits of a local cluster, in seconds."""

    ready_s: float = 120.0  # a process from spawn to ready, then all to the first request
    frozen_s: float = 10.0
    stop_s: float = 5.0  # beyond the drain
    first_backoff_s: float = 0.5  # doubles up to the last, and starts anew after a long life
    last_backoff_s: float = 30.0


def _ignore(_: str) -> None:
    """The default listener."""


class LocalCluster:
    """`async with LocalCluster(plan) as cluster:` runs until the block ends, then drains."""

    def __init__(
        self,
        plan: ClusterPlan,
        *,
        supervision: Supervision | None = None,
        say: Callable[[str], None] = _ignore,
        run_dir_parent: Path | None = None,
        pool_bytes: int = 0,
    ) -> None:
        self.plan = plan
        self._times = supervision or Supervision()
        self._say = say
        self._run_dir_parent = run_dir_parent
        self._pool_bytes = pool_bytes
        self._created: RunDir | None = None
        self.children: dict[str, Child] = {}
        self.num_restarts = 0
        self._supervisors: set[asyncio.Task[None]] = set()

    @property
    def _run_dir(self) -> RunDir:
        if self._created is None:
            raise StartupError("The cluster is not started: use 'async with'.")
        return self._created

    @property
    def run_dir(self) -> Path:
        return self._run_dir.path

    @property
    def secrets_file(self) -> Path:
        return self._run_dir.secrets_file

    @property
    def address(self) -> str:
        """Where clients connect."""
        return self.children["router"].address

    async def __aenter__(self) -> Self:
        self._created = RunDir.create(num_bytes=self._pool_bytes, parent=self._run_dir_parent)
        try:
            await self._start_all()
        except BaseException:
            await self._end(is_clean=False)
            raise
        for name, child in self.children.items():
            task = asyncio.create_task(self._supervise(child), name=f"supervise {name}")
            self._supervisors.add(task)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end(is_clean=kind is None or not issubclass(kind, Exception))

    def kill(self) -> None:
        """Ends all processes at once; whatever waits for their drain returns."""
        for child in self.children.values():
            child.kill()

    async def _start_all(self) -> None:
        token = create_secrets(self.secrets_file).cluster_token
        router = await self._start(self.plan.router_plan(self.secrets_file, self.plan.port))
        workers = self.plan.worker_plans(self.secrets_file, self.run_dir, router.address)
        starts = [asyncio.create_task(self._start(worker)) for worker in workers]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            # The others must have ended, or be known, before anything is stopped.
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            raise
        try:
            async with asyncio.timeout(self._times.ready_s):
                names = [worker.name for worker in workers]
                await until_all_serve(router.address, token, names)
        except TimeoutError:
            raise StartupError(
                f"All processes are ready, but the router does not use all workers after"
                f" {self._times.ready_s:g} s. The end of {self._run_dir.log('router')}:\n"
                f"{tail(self._run_dir.log('router'))}"
            ) from None

    async def _start(self, plan: ProcessPlan) -> Child:
        child = await Child.start(
            plan,
            self._run_dir.config(plan.name),
            self._run_dir.log(plan.name),
            ready_timeout_s=self._times.ready_s,
        )
        self.children[plan.name] = child
        self._say(f"{plan.name} is ready at {child.address} (pid {child.pid})")
        return child

    async def _supervise(self, child: Child) -> None:
        """Keeps one process alive until cancelled."""
        backoff_s = self._times.first_backoff_s
        while True:
            born = time.monotonic()
            self._say(f"{child.name} {await self._until_dead(child)}; starting it again")
            sweep_pools(self.run_dir)
            if time.monotonic() - born > self._times.last_backoff_s:
                backoff_s = self._times.first_backoff_s
            child, backoff_s = await self._restart(child, backoff_s)

    async def _until_dead(self, child: Child) -> str:
        """Waits for the end of a process, kills it if it is frozen; says what happened."""
        frozen = asyncio.create_task(
            until_frozen(child, frozen_after_s=self._times.frozen_s), name=f"watch {child.name}"
        )
        ended = asyncio.create_task(child.wait())
        try:
            await asyncio.wait({frozen, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return f"ended with code {ended.result()}"
            child.kill()
            await ended
            return f"did not serve for {self._times.frozen_s:g} s and was killed"
        finally:
            for task in (frozen, ended):
                task.cancel()
            await asyncio.gather(frozen, ended, return_exceptions=True)

    async def _restart(self, dead: Child, backoff_s: float) -> tuple[Child, float]:
        """The new process, and the backoff for the next time."""
        plan = dead.plan
        if plan.part is Part.ROUTER:
            # Workers and clients know the old port.
            port = int(dead.address.rpartition(":")[2])
            plan = self.plan.router_plan(self.secrets_file, port)
        while True:
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, self._times.last_backoff_s)
            try:
                child = await self._start(plan)
            except StartupError as error:
                self._say(f"{error}\nTrying again in {backoff_s:g} s.")
            else:
                self.num_restarts += 1
                return child, backoff_s

    async def _end(self, *, is_clean: bool) -> None:
        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)
        grace_s = self.plan.drain_s + self._times.stop_s if is_clean else 0.0
        try:
            # The router first: it takes nothing new, and its streams need the workers.
            routers = [child for child in self.children.values() if child.name == "router"]
            workers = [child for child in self.children.values() if child.name != "router"]
            for group in (routers, workers):
                await self._stop(group, grace_s)
        finally:
            self.kill()
            sweep_pools(self.run_dir)
            self._run_dir.remove(keep_logs=not is_clean)

    async def _stop(self, children: list[Child], grace_s: float) -> None:
        ends = await asyncio.gather(*(child.stop(grace_s=grace_s) for child in children))
        for child, was_enough in zip(children, ends, strict=True):
            if grace_s and not was_enough:
                self._say(f"{child.name} did not end within {grace_s:g} s and was killed")
