"""Starts, supervises and drains the processes of a cluster on this machine: what is dead or
frozen is started again, in order at the end. Knows nothing of requests.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Never, Self

from cluster.addresses import Endpoint, advertised, is_loopback_address
from cluster.errors import StartupError, SupervisionError
from cluster.lateness import Patience
from cluster.secrets import copy_secrets, create_secrets
from deploy.child import Child, tail
from deploy.frozen import Ailment, Limits
from deploy.plan import ClusterPlan, Part, ProcessPlan
from deploy.run_dir import RunDir
from deploy.supervisor import Backoff, Supervisor, start
from deploy.vitals import all_of, until_serving
from kv_transfer.pool import sweep as sweep_pools

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """Time limits of a local cluster, in seconds that the supervisor itself ran."""

    ready_s: float = 120.0  # a process from spawn to ready, then all to the first request
    frozen_s: float = 10.0  # a router, whose streams die with it; a worker that is at work
    stopped_s: float = 2.5  # a worker that is stopped, or neither answers nor does anything
    wedged_s: float = 0.5  # a worker that says so itself, after two seconds or more
    stop_s: float = 5.0  # beyond the drain
    first_backoff_s: float = 0.1  # doubles up to the last, and starts anew after a long life
    last_backoff_s: float = 30.0

    def limits(self, part: Part) -> Limits:
        """The patience with a process of this part."""
        limits = dict.fromkeys(Ailment, self.frozen_s) | {Ailment.UNREADY: self.ready_s}
        if part.is_worker:
            stopped_s = min(self.stopped_s, self.frozen_s)
            limits |= {Ailment.STOPPED: stopped_s, Ailment.IDLE: stopped_s}
            limits |= {Ailment.WEDGED: min(self.wedged_s, self.frozen_s)}
        return limits


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
    ) -> None:
        self.plan = plan
        self._times = supervision or Supervision()
        self._listener = say
        self._run_dir_parent = run_dir_parent
        self._log_dir: Path | None = None
        self._created: RunDir | None = None
        self.children: dict[str, Child] = {}
        self._supervisors: list[Supervisor] = []
        self._tasks: list[asyncio.Task[Never]] = []

    @property
    def num_restarts(self) -> int:
        return sum(supervisor.num_restarts for supervisor in self._supervisors)

    @property
    def _run_dir(self) -> RunDir:
        if self._created is None:
            raise StartupError("The cluster is not started: use 'async with'.")
        return self._created

    @property
    def run_dir(self) -> Path:
        return self._run_dir.path

    @property
    def log_dir(self) -> Path:
        return self._log_dir or self._run_dir.logs

    def keep_logs_in(self, folder: Path) -> None:
        """Chooses, before the start, where logs are kept. Else they lie beside all else, and go
        with it, unless the cluster ends by a failure."""
        self._log_dir = folder

    @property
    def secrets_file(self) -> Path:
        return self._run_dir.secrets_file

    @property
    def address(self) -> str:
        """Gives the address that clients of this machine dial."""
        return str(Endpoint.parse(self.listens).to_dial)

    @property
    def internal(self) -> str:
        """Gives the address where processes of this machine reach the router: at its front door
        only where nobody else can listen in, and clients speak no TLS."""
        apart = str(self.children["router"].ready.get("internal", ""))
        is_plain = self.plan.tls is None and is_loopback_address(self.address)
        if not apart or is_plain:
            return self.address
        return str(advertised(Endpoint.parse(apart), None))  # by which TLS is spoken there

    @property
    def listens(self) -> str:
        """Gives the address where the router was told to listen: all of them, perhaps."""
        return self.children["router"].address

    @property
    def http(self) -> str:
        """Gives the address that OpenAI's clients of this machine dial; empty: there is none."""
        said = str(self.children["router"].ready.get("http", ""))
        return str(Endpoint.parse(said).to_dial) if said else ""

    async def __aenter__(self) -> Self:
        try:
            self._created = RunDir.create(
                self.plan.name, num_bytes=self.plan.pool_bytes, parent=self._run_dir_parent
            )
            await self._start_all()
        except BaseException as error:
            await self._end(grace_s=0.0, keeps_logs=True)
            if isinstance(error, OSError):
                raise StartupError(f"The cluster cannot be started: {error}.") from error
            raise
        self._supervisors = [self._supervisor(child) for child in self.children.values()]
        self._tasks = [asyncio.create_task(each.run()) for each in self._supervisors]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        broken = None if isinstance(error, SupervisionError) else self._broken()
        is_failure = isinstance(error, Exception) and not isinstance(error, SupervisionError)
        grace_s = 0.0 if is_failure else self.plan.drain_s + self._times.stop_s
        await self._end(grace_s=grace_s, keeps_logs=isinstance(error, Exception) or bool(broken))
        if broken is not None and error is None:
            raise broken

    async def supervise(self, *, until: Coroutine[Any, Any, object]) -> None:
        """Waits for the end of `until`. Raises SupervisionError where nothing that dies would be
        started again: leave the block then, which drains."""
        waiting = asyncio.create_task(until)
        try:
            await asyncio.wait({waiting, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
            if (broken := self._broken()) is not None:
                raise broken
        finally:
            waiting.cancel()

    def kill(self) -> None:
        """Ends all processes at once; whatever waits for their drain returns."""
        for child in self.children.values():
            with contextlib.suppress(OSError):  # the others must end, too
                child.kill()

    def _log(self, name: str) -> Path:
        return self.log_dir / f"{name}.log"

    def _say(self, line: str) -> None:
        logger.info("%s", line)
        try:
            self._listener(line)
        except Exception:  # whoever listens is not ours: nothing depends on being heard
            logger.exception("nobody heard: %s", line)

    def _broken(self) -> SupervisionError | None:
        """A supervisor never ends by itself."""
        for task in self._tasks:
            if task.done():
                cause = None if task.cancelled() else task.exception()
                logger.critical("a supervisor ended", exc_info=cause)
                return SupervisionError(
                    f"The supervision of this cluster ended by itself ({cause!r}): nothing that"
                    " dies would be started again, so its processes were stopped."
                )
        return None

    async def _start_all(self) -> None:
        self._run_dir.described.write_text(self.plan.described)
        given = self.plan.secrets_file
        path = self.secrets_file
        is_open = self.plan.is_open
        secrets = (
            copy_secrets(given, path) if given else create_secrets(path, with_authority=is_open)
        )
        await self._start(self.plan.router_plan(self.secrets_file, self.plan.port))
        workers = self.plan.worker_plans(self.secrets_file, self.run_dir, self.internal)
        starts = [asyncio.create_task(self._start(worker)) for worker in workers]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            # The others must have ended, or be known, before anything is stopped.
            for each in starts:
                each.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            raise
        try:
            async with Patience(self._times.ready_s):
                names = [worker.name for worker in workers]
                await until_serving(self.internal, secrets, all_of(names))
        except TimeoutError:
            raise StartupError(
                f"All processes are ready, but the router does not use all workers after"
                f" {self._times.ready_s:g} s. The end of {self._log('router')}:\n"
                f"{tail(self._log('router'))}"
            ) from None

    async def _start(self, plan: ProcessPlan) -> Child:
        log, limits = self._log(plan.name), self._times.limits(plan.part)
        plan = replace(plan, config={"log_file": str(log), **plan.config})
        child = await start(plan, self._run_dir.config(plan.name), log, limits)
        self.children[plan.name] = child
        self._say(f"{plan.name} is ready at {child.address} (pid {child.pid})")
        return child

    def _supervisor(self, child: Child) -> Supervisor:
        plan = child.plan
        if plan.part is Part.ROUTER:
            # Workers and clients know the old port.
            port = Endpoint.parse(child.address).port
            others = [child.ready.get(key) for key in ("internal", "http")]
            ports = [Endpoint.parse(each).port if each else None for each in others]
            plan = self.plan.router_plan(self.secrets_file, port, *ports)
        return Supervisor(
            child,
            name=plan.name,
            start=partial(self._start, plan),
            bury=partial(sweep_pools, self.run_dir),
            limits=self._times.limits(plan.part),
            backoff=Backoff(self._times.first_backoff_s, self._times.last_backoff_s),
            say=self._say,
        )

    async def _end(self, *, grace_s: float, keeps_logs: bool) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            # The router first: it takes nothing new, and its streams need the workers.
            routers = [child for child in self.children.values() if child.name == "router"]
            workers = [child for child in self.children.values() if child.name != "router"]
            for group in (routers, workers):
                await self._stop(group, grace_s)
        finally:
            self.kill()
            self._clear(keeps_logs=keeps_logs)

    async def _stop(self, children: list[Child], grace_s: float) -> None:
        stops = (child.stop(grace_s=grace_s) for child in children)
        for child, end in zip(
            children, await asyncio.gather(*stops, return_exceptions=True), strict=True
        ):
            if isinstance(end, BaseException):
                self._say(f"{child.name} could not be stopped: {end}")
            elif grace_s and not end:
                self._say(f"{child.name} did not end within {grace_s:g} s and was killed")

    def _clear(self, *, keeps_logs: bool) -> None:
        if self._created is None:
            return
        try:
            sweep_pools(self.run_dir)
            self._created.remove(keep_logs=keeps_logs and self._log_dir is None)
        except OSError as error:
            self._say(f"{self.run_dir} is left behind: {error}")
