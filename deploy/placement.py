"""Says which processes a cluster's document wants on the machines of others, what each sets aside,
and whether any machine has that. Pure: it is told what machines there are."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from cluster.addresses import Endpoint
from cluster.errors import ConfigError
from deploy.cluster_file.document import IN_MEMORY, ClusterDocument, ClusterSpec, Labels, WorkerPool
from deploy.cluster_file.local import local_plan
from deploy.placed import StartOrder
from deploy.plan import ClusterPlan, ProcessPlan

ROUTER_CPUS: Final = 1.0
PLANNER_CPUS: Final = 0.25
PLANNER: Final = "planner"
_ROUTER: Final = re.compile(r"router-\d+")
LOOPBACK: Final = "127.0.0.1"  # in an order: the machine's own
LABELS: Final = ("host", "rack", "zone")  # as 'ray start --labels' was given them


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One that is alive, as its placer knows it."""

    machine_id: str
    address: str
    host: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    total: Mapping[str, float] = field(default_factory=dict)
    free: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.address} ({self.host})" if self.host else self.address


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """Describes machines that an autoscaler may add; their labels are not known."""

    name: str
    total: Mapping[str, float]

    def __str__(self) -> str:
        return f"type '{self.name}', which may be added,"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Holds what of a machine is set aside for one process, or is to be."""

    group_id: str
    cluster: str
    name: str  # of the process
    digest: str
    machine_id: str = ""  # empty: it waits for one
    is_impossible: bool = False  # no machine has it, even when it is empty

    @property
    def is_router(self) -> bool:
        """Tells a router by its name, which is all that Ray keeps: no pool may be called
        'router'."""
        return _ROUTER.fullmatch(self.name) is not None


class Reply(NamedTuple):
    """Holds what somebody said, or why not."""

    text: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One process, and what of a machine is set aside for it."""

    order: StartOrder
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    pool_bytes: int = 0  # of KV, in its machine's shared memory

    @property
    def name(self) -> str:
        return self.order.name

    @property
    def digest(self) -> str:
        """Digests all that makes it another one when it differs."""
        said = [self.order.as_json(), dict(self.resources), dict(self.labels)]
        return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]

    def named(self, name: str) -> "Wanted":
        """The same, of another worker of its pool."""
        config = {**self.order.config, "worker_id": name}
        return replace(self, order=replace(self.order, name=name, config=config))

    def as_json(self) -> str:
        said = {**asdict(self), "order": self.order.as_json()}
        return json.dumps(said, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Wanted":
        said = json.loads(text)
        return cls(**{**said, "order": StartOrder.from_json(said["order"])})

    def fits(self, place: Machine | MachineType) -> bool:
        """Tells whether it fits there where nothing else is."""
        return not self.lacks(place)

    def fits_now(self, machine: Machine) -> bool:
        return self.fits(machine) and not self._too_little(machine.free)

    def lacks(self, place: Machine | MachineType) -> list[str]:
        """Says in words what the place does not have."""
        lacking = self._too_little(place.total)
        if isinstance(place, MachineType):
            return lacking
        return lacking + [
            f"{name} '{place.labels.get(name, '')}'"
            for name, wanted in self.labels.items()
            if place.labels.get(name) != wanted
        ]

    def _too_little(self, amounts: Mapping[str, float]) -> list[str]:
        return [
            f"{name} {amounts.get(name, 0.0):g}"
            for name, wanted in self.resources.items()
            if amounts.get(name, 0.0) < wanted
        ]

    @property
    def needs(self) -> str:
        """Tells in words what it needs."""
        amounts = [f"{name} {amount:g}" for name, amount in self.resources.items()]
        return ", ".join(amounts + [f"{name} '{label}'" for name, label in self.labels.items()])


def wanted(
    document: ClusterDocument, folder: Path, *, described: Path | None = None
) -> list[Wanted]:
    """All that there may be: routers first, then as many workers as a pool may have, last a planner
    where a pool may grow. `folder`: where relative paths begin; `described`: what says here what
    the weights are, where each machine pulls them. Raises ConfigError and CheckpointError."""
    spec = document.spec
    secrets_file = _check(spec, folder)
    plan = local_plan(document, folder, described=described)
    most = zip(plan.all_pools, spec.pools, strict=True)
    plan = replace(plan, pools=tuple(replace(each, num=pool.most_workers) for each, pool in most))
    if spec.checkpoint:  # elsewhere the same path may lead somewhere else
        there = (folder / spec.checkpoint).absolute()
        plan = replace(plan, checkpoint=there, model=spec.model or there.resolve().name)
    routers = list(_routers(spec, plan, secrets_file))
    workers = list(_workers(spec, plan, secrets_file))
    return routers + workers + list(_planner(spec, plan, secrets_file, workers))


def staffed(
    possible: Iterable[Wanted], pools: Sequence[WorkerPool], running: Collection[str]
) -> list[Wanted]:
    """Chooses, of all that there may be, those that are to be there: who runs stays, as far as its
    pool may have it, for a planner may have wanted it; and each pool has as many as it must."""
    left = {name for pool in pools for name in _left_out(pool, running)}
    return [each for each in possible if each.name not in left]


def _left_out(pool: WorkerPool, running: Collection[str]) -> list[str]:
    missing = [name for name in pool.workers if name not in running]
    num_there = pool.most_workers - len(missing)
    return missing[max(0, pool.min_workers - num_there) :]


def _check(spec: ClusterSpec, folder: Path) -> Path:
    """Returns the secrets file."""
    if spec.store == IN_MEMORY:
        raise ConfigError(
            "On many machines routers and workers find each other through a Redis: add"
            " 'store: redis://HOST:6379/0' under 'spec'."
        )
    if spec.secrets_file is None:
        raise ConfigError(
            "On many machines all processes need the same secrets: draw them with 'penstock"
            " secrets FILE', copy the file to every machine, and add 'secretsFile: FILE' under"
            " 'spec'."
        )
    for pool in spec.pools:
        if pool.device != "cpu" and not pool.resources.gpus:
            raise ConfigError(
                f"Pool '{pool.name}' computes on '{pool.device}', and a worker sees the GPUs alone"
                " that are set aside for it: add 'resources: {gpus: 1}' to it."
            )
    return (folder / spec.secrets_file).absolute()


def _routers(spec: ClusterSpec, plan: ClusterPlan, secrets_file: Path) -> Iterator[Wanted]:
    routers = spec.routers
    ports, internal_ports = routers.ports * routers.count, routers.internal_ports * routers.count
    for index in range(routers.count):
        plan = replace(plan, http_port=routers.http_port(index))
        process = plan.router_plan(secrets_file, ports[index])
        config = {key: each for key, each in process.config.items() if key != "policy_state"}
        # Operators are elsewhere, whoever may come in at the front door.
        config["internal"] = str(Endpoint(LOOPBACK, internal_ports[index]))
        process = replace(process, name=f"router-{index}", config=config)
        yield Wanted(
            order=_order(spec, plan, process, 1),
            resources={"CPU": ROUTER_CPUS},
            labels=_labels(routers.labels),
        )


def _workers(spec: ClusterSpec, plan: ClusterPlan, secrets_file: Path) -> Iterator[Wanted]:
    # Where they lie is for each machine to say.
    processes = plan.worker_plans(secrets_file, Path(), "")
    by_name = {process.name: process for process in processes}
    for pool, planned in zip(spec.pools, plan.all_pools, strict=True):
        for name in planned.workers:
            config = {key: each for key, each in by_name[name].config.items() if key != "run_dir"}
            process = replace(by_name[name], config=config)
            yield Wanted(
                order=_order(spec, plan, process, pool.num_threads),
                resources=_resources(pool),
                labels=_labels(pool.labels),
                pool_bytes=planned.pool_bytes,
            )


def _planner(
    spec: ClusterSpec, plan: ClusterPlan, secrets_file: Path, workers: Sequence[Wanted]
) -> Iterator[Wanted]:
    if not spec.grows:
        return
    by_name = {each.name: each for each in workers}
    pools = [
        {
            "name": pool.name,
            "role": str(pool.role),
            "least": pool.min_workers,
            "most": pool.most_workers,
            "first": by_name[pool.workers[0]].as_json(),
        }
        for pool in spec.pools
        if pool.most_workers
    ]
    process = plan.planner_plan(secrets_file, pools, spec.planner)
    yield Wanted(order=_order(spec, plan, process, 1), resources={"CPU": PLANNER_CPUS})


def _order(
    spec: ClusterSpec, plan: ClusterPlan, process: ProcessPlan, num_threads: int
) -> StartOrder:
    config = process.config
    if spec.weights:
        config = {key: each for key, each in config.items() if key != "checkpoint"}
    return StartOrder(
        cluster=plan.name,
        name=process.name,
        part=process.part,
        config=config,
        num_threads=num_threads,
        weights=spec.weights,
        weights_dir=str(plan.checkpoint) if spec.weights and spec.checkpoint else "",
    )


def _resources(pool: WorkerPool) -> dict[str, float]:
    cpus = pool.resources.cpus
    amounts = {
        "CPU": float(pool.num_threads) if cpus is None else cpus,
        "GPU": pool.resources.gpus,
        str(pool.role): 1.0 if pool.resources.role else 0.0,
    }
    return {name: amount for name, amount in amounts.items() if amount}


def _labels(labels: Labels) -> dict[str, str]:
    found = {name: getattr(labels, name) for name in LABELS}
    return {name: label for name, label in found.items() if label is not None}


def impossible(wanted: Iterable[Wanted], places: Sequence[Machine | MachineType]) -> list[str]:
    """Sentences, of what none has even when it is empty. One for all that are alike."""
    alike: dict[str, list[Wanted]] = {}
    for each in wanted:
        if not any(each.fits(place) for place in places):
            alike.setdefault(each.needs, []).append(each)
    return [_sentence(each, places) for each in alike.values()]


def _sentence(alike: Sequence[Wanted], places: Sequence[Machine | MachineType]) -> str:
    first = alike[0]
    names = first.name if len(alike) == 1 else f"{first.name} to {alike[-1].name}"
    have = "; ".join(f"{place} has {', '.join(first.lacks(place))}" for place in places)
    return f"No machine has room for {names}: wanted is {first.needs}. {have}. {_remedy(first)}"


def _remedy(lacking: Wanted) -> str:
    role = str(lacking.order.part)
    if role in lacking.resources:
        return f"Start its machines with: ray start --resources '{{\"{role}\": 1}}'"
    if lacking.labels:
        labels = ",".join(f"{name}={label}" for name, label in lacking.labels.items())
        return f"Start such a machine, with: ray start --labels {labels}"
    return "Add a machine that has it, or ask for less."


def spread(
    wanted: Iterable[Wanted], machines: Sequence[Machine], *, taken: Iterable[str] = ()
) -> dict[str, str]:
    """A machine for each, by id, the one that has fewest of them: as far as they fit. `taken`:
    where there is one already."""
    numbers = Counter(taken)
    places: dict[str, str] = {}
    for each in wanted:
        fitting = [machine for machine in machines if each.fits_now(machine)]
        if fitting:
            place = min(fitting, key=lambda machine: numbers[machine.machine_id]).machine_id
            numbers[place] += 1
            places[each.name] = place
    return places


def most_bound_first(wanted: Iterable[Wanted], machines: Sequence[Machine]) -> list[Wanted]:
    """Sorts them: else who may lie anywhere takes the one machine that another needs."""
    return sorted(
        wanted,
        key=lambda each: (sum(map(each.fits, machines)), -sum(each.resources.values())),
    )


def usable(wanted: Sequence[Wanted], machines: Iterable[Machine]) -> list[Machine]:
    """Gives the machines on which any of these may come to lie."""
    return [machine for machine in machines if any(each.fits(machine) for each in wanted)]
