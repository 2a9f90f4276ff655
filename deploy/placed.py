"""One process of a cluster on whatever machine it was placed: joins that machine's directory of
the cluster, starts the process, keeps it alive, stops it when told. Knows nothing of who placed it.

The order that says what to run holds no secret: those lie in a file on each machine. Calls come
from any thread and are answered by the one that this starts: processes follow its death.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from cluster.addresses import Endpoint, is_loopback
from cluster.errors import StartupError
from cluster.process import placed_environment
from cluster.wire_version import WIRE_VERSION
from deploy.child import Child
from deploy.launcher import Supervision
from deploy.log_dir import join_log_dir, placed_log_root
from deploy.orphan import end_orphan, note_process
from deploy.plan import MODULES, Part, ProcessPlan
from deploy.run_dir import RunDir
from deploy.supervisor import Backoff, Supervisor, start
from deploy.weights.kept import hold
from deploy.weights.origin import Weights
from deploy.weights.pulled import pulled
from kv_transfer.pool import sweep as sweep_pools
from penstock import __version__

T = TypeVar("T")
MAX_SAID_CHARS = 1000
LISTENS: Final = frozenset({"address", "internal", "http"})
OF_PLANNERS: Final = ("RAY_AUTH_",)  # variables: what admits them to Ray, and nobody else


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOrder:
    """Says what to run, the same wherever it will be. Where calls of the cluster come in, a
    loopback address in `config` stands for the machine's own; where clients do, for itself. With
    `weights` its checkpoint is where these are, once they are pulled."""

    cluster: str
    name: str
    part: Part
    config: Mapping[str, Any]
    num_threads: int = 1
    command: tuple[str, ...] = ()  # empty: this release's own
    version: str = __version__  # of the Penstock that it is to be
    wire_version: int = WIRE_VERSION
    weights: Weights | None = None
    weights_dir: str = ""  # to pull them to; empty: this user's cache

    def as_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "StartOrder":
        """Passes over what another release says beyond this."""
        said = _known(cls, json.loads(text))
        weights = said.get("weights") and Weights(**_known(Weights, said["weights"]))
        known = {"part": Part(said["part"]), "command": tuple(said["command"]), "weights": weights}
        return cls(**{**said, **known})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedState:
    """Says how a placed process is; this travels to whoever asks."""

    order: str  # as JSON
    host: str  # the machine's name
    machine: str  # its address
    gpus: tuple[str, ...] = ()
    pid: int = 0  # 0: it does not run
    address: str = ""  # empty: it does not serve yet
    internal: str = ""  # of a router: where calls of the cluster come in
    http: str = ""  # of a router: where OpenAI's clients do
    restarts: int = 0
    said: str = ""  # last, of what went wrong

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "PlacedState":
        """Reads a state, also of a release before or after this one."""
        said = _known(cls, json.loads(text))
        return cls(**{**said, "gpus": tuple(said["gpus"])})


def _known(kind: type[Any], said: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {key: value for key, value in said.items() if key in names}


class PlacedSupervisor:
    """Starts at once, and goes on trying."""

    def __init__(
        self,
        order: StartOrder,
        *,
        machine: str,
        directory: str,
        placer: str | None = None,
        gpus: Sequence[str] = (),
        supervision: Supervision | None = None,
        run_dir_parent: Path | None = None,
    ) -> None:
        """`machine`: its address; `directory`: by which name those of a cluster join there;
        `placer`: the address of who placed it."""
        self._order = order
        self._machine = machine
        self._directory = directory
        self._placer = placer
        self._gpus = tuple(gpus)
        self._ports: dict[str, int] = {}  # of a router that was there: others know them
        self._times = supervision or Supervision()
        self._parent = run_dir_parent
        self._run_dir: RunDir | None = None
        self._logs_held = contextlib.ExitStack()
        self._weights_held: int | None = None
        self._logs = Path()  # as it is joined
        self._child: Child | None = None
        self._said = ""
        self._ending: asyncio.Future[bool] | None = None  # kept: the loop itself would not
        self._supervisor = self._make_supervisor()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="placed", daemon=True).start()
        self._supervising = self._run(self._supervise())

    def state(self) -> PlacedState:
        child = self._child if self._child and self._child.is_running else None
        ready = child.ready if child else {}
        return PlacedState(
            order=self._order.as_json(),
            host=socket.gethostname(),
            machine=self._machine,
            gpus=self._gpus,
            pid=child.pid if child else 0,
            address=reached_at(ready["address"], self._machine) if ready else "",
            internal=ready.get("internal", ""),
            http=reached_at(ready["http"], self._machine) if "http" in ready else "",
            restarts=self._supervisor.num_restarts,
            said=self._said,
        )

    def stop(self, drain_s: float | None = None) -> bool:
        """Drains, ends what does not end by itself, leaves nothing here; whether it ended by
        itself. Nothing is started after it. `drain_s`: None is what it was told at its start."""
        return self._run(self._stop(drain_s))

    def follow(self, pid: int) -> None:
        """Drains when that process is gone, and ends this one: whoever placed it believes that it
        is lost, and has another somewhere."""
        self._run(self._follow(pid))

    async def _follow(self, pid: int) -> None:
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            self._outlived()
        else:
            self._loop.add_reader(process, self._outlived, process)

    def _outlived(self, process: int | None = None) -> None:
        if process is not None:
            self._loop.remove_reader(process)
        self._say(f"{self._order.name} drains: whoever placed it is gone.")
        self._ending = asyncio.ensure_future(self._stop(None))
        self._ending.add_done_callback(lambda _: os._exit(1))

    def _run(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    async def _supervise(self) -> asyncio.Task[Any]:
        return asyncio.create_task(self._supervisor.run())

    def _make_supervisor(self) -> Supervisor:
        return Supervisor(
            None,
            name=self._order.name,
            start=self._start,
            bury=self._bury,
            limits=self._times.limits(self._order.part),
            backoff=Backoff(self._times.first_backoff_s, self._times.last_backoff_s),
            say=self._say,
        )

    def _say(self, line: str) -> None:
        self._said = line.partition("\n")[0][:MAX_SAID_CHARS]
        with contextlib.suppress(OSError):  # who reads it may be gone
            print(line, flush=True)

    async def _start(self) -> Child:
        run_dir = self._run_dir = self._run_dir or self._joined()
        name = self._order.name
        # Of an actor that was killed: it may still drain, on what is given to this one.
        await asyncio.to_thread(end_orphan, run_dir.process(name))
        sweep_pools(run_dir.path)
        log = self._logs / f"{name}.log"
        order = await self._with_weights(log)
        plan = process_plan(
            order,
            run_dir.path,
            log,
            self._machine,
            self._gpus,
            self._ports,
            self._placer,
        )
        limits = self._times.limits(plan.part)
        noted = partial(self._note, run_dir)
        self._child = await start(plan, run_dir.config(name), log, limits, spawned=noted)
        self._said = ""
        if plan.part is Part.ROUTER:
            self._ports = _ports(self._child.ready)
        return self._child

    async def _with_weights(self, log: Path) -> StartOrder:
        order = self._order
        if order.weights is None:
            return order
        if self._weights_held is None:  # nobody takes them away, as long as this process lives
            self._weights_held = hold(order.weights, order.weights_dir)
        here = await pulled(order.weights, order.weights_dir, say=self._say, log=log)
        return replace(order, config={**order.config, "checkpoint": str(here)})

    def _note(self, run_dir: RunDir, child: Child) -> None:
        self._child = child
        note_process(run_dir.process(self._order.name), child.pid)

    def _joined(self) -> RunDir:
        try:
            run_dir = RunDir.join(self._directory, parent=self._parent)
        except OSError as error:
            raise StartupError(
                f"{self._order.name} has no directory on {self._machine}: {error}."
            ) from error
        try:
            kept = join_log_dir(placed_log_root(), self._directory)
            self._logs = self._logs_held.enter_context(kept)
        except OSError:  # no place that outlives the cluster can be written
            self._logs = run_dir.logs
        return run_dir

    def _bury(self) -> None:
        if self._run_dir:
            sweep_pools(self._run_dir.path)

    async def _stop(self, drain_s: float | None) -> bool:
        if drain_s is None:
            drain_s = self._order.config["drain_s"]
        self._supervising.cancel()
        await asyncio.gather(self._supervising, return_exceptions=True)
        child, self._child = self._child, None
        was_enough = True
        if child and child.is_running:
            was_enough = await child.stop(grace_s=drain_s + self._times.stop_s)
        if self._run_dir:
            self._bury()
            self._run_dir.process(self._order.name).unlink(missing_ok=True)
            run_dir, self._run_dir = self._run_dir, None
            self._logs_held.close()
            if self._weights_held is not None:
                os.close(self._weights_held)
                self._weights_held = None
            await asyncio.to_thread(run_dir.leave)
        return was_enough


def process_plan(
    order: StartOrder,
    run_dir: Path,
    log: Path,
    machine: str,
    gpus: Sequence[str] = (),
    ports: Mapping[str, int] | None = None,
    placer: str | None = None,
) -> ProcessPlan:
    """Turns the order into a plan for this machine; `ports`: instead of any that is free; `placer`:
    the address of who placed it."""
    here: dict[str, Any] = {**_addresses(order, machine, ports or {}), "log_file": str(log)}
    if order.part.is_worker:
        here["run_dir"] = str(run_dir)
    if order.part is Part.PLANNER:
        here["ray"] = placer
    return ProcessPlan(
        name=order.name,
        part=order.part,
        command=order.command or (sys.executable, "-P", "-m", MODULES[order.part]),
        config={**order.config, **here},
        environment=placed_environment(
            num_threads=order.num_threads,
            gpus=gpus,
            also=OF_PLANNERS if order.part is Part.PLANNER else (),
        ),
    )


def reached_at(listens: str, machine: str) -> str:
    """Gives the address where others than this machine reach it."""
    endpoint = Endpoint.parse(listens)
    is_everywhere = endpoint.to_dial != endpoint
    return str(Endpoint(machine, endpoint.port) if is_everywhere else endpoint)


def _addresses(order: StartOrder, machine: str, ports: Mapping[str, int]) -> dict[str, str]:
    """Gives the addresses where it listens on this machine."""
    found = {}
    for key in sorted(LISTENS & order.config.keys()):
        if order.config[key] is None:
            continue
        host, port = Endpoint.parse(order.config[key])
        # A front door opens to no more than its file says; of a planner only its health is asked.
        is_own = key != "internal" and not order.part.is_worker
        own = machine if is_loopback(host) and not is_own else host
        found[key] = str(Endpoint(own, port or ports.get(key, 0)))
    return found


def _ports(ready: Mapping[str, Any]) -> dict[str, int]:
    return {key: Endpoint.parse(ready[key]).port for key in LISTENS & ready.keys()}
