"""How a cluster that runs differs from its file, beside its policy: by the description that it was
started with, and by what its routers say of who is there; and what 'up' would do about it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cluster.document.difference import Change, change_text, differences
from cluster.errors import StartupError
from cluster.worker_codec import role_from_pb
from deploy.cluster_file.document import ClusterDocument
from deploy.cluster_file.kind import CLUSTER
from deploy.placement import PLANNER, Wanted, staffed, wanted
from deploy.reconcile import Placing, divides, steps
from deploy.reconcile import differences as order_differences
from penstock import __version__
from penstock.cli.cluster_options import weights_of
from penstock.v1 import worker_pb2 as pb

ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """Holds the differences, from what the file says to what runs, and what follows."""

    described: list[Change] | None  # None: by which description it was started is not known
    members: list[Change]
    would: list[str]  # be done, a sentence each

    @property
    def differs(self) -> bool:
        return bool(self.described or self.members)

    def as_text(self) -> str:
        changes = [change_text(each) for each in (*(self.described or []), *self.members)]
        return "".join(f"{line}\n" for line in (*changes, *self.would))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def in_force(
    document: ClusterDocument,
    folder: Path,
    described: ClusterDocument | None,
    statuses: Mapping[str, pb.StatusResponse],
    *,
    is_placed: bool,
) -> InForce:
    """`folder`: where the file's relative paths begin; `described`: what it was started by;
    `statuses`: by router, what it says; `is_placed`: on the machines of a Ray."""
    changes = None
    if described is not None:
        changes = differences(CLUSTER.effective(document), CLUSTER.effective(described))
    members = [*_members(document, statuses.values(), is_placed), *_versions(statuses)]
    would: list[str] = []
    if is_placed and described is not None and changes:
        would = list(_would(document, described, folder))
    elif changes and not is_placed:
        would = ["'penstock serve' reads its file at its start: 'penstock stop', then serve again."]
    would += _remedies(members, is_placed=is_placed)
    return InForce(described=changes, members=members, would=would)


def _members(
    document: ClusterDocument, statuses: Collection[pb.StatusResponse], is_placed: bool
) -> Iterator[Change]:
    """Compares, by name, the workers that the file has at least with those that routers know."""
    roles = {
        worker.member.worker.worker_id: str(role_from_pb(worker.member.role))
        for status in statuses
        for worker in status.workers
    }
    most: dict[str, str] = {}
    least: dict[str, str] = {}
    for pool in document.spec.pools:
        num_most = pool.most_workers if is_placed else pool.min_workers
        most |= dict.fromkeys(pool.workers[:num_most], str(pool.role))
        least |= dict.fromkeys(pool.workers[: pool.min_workers], str(pool.role))
    for name in sorted({*least, *roles}):
        meant = (most if name in roles else least).get(name, ABSENT)
        if meant != (there := roles.get(name, ABSENT)):
            yield {"field": f"workers[{name}]", "before": meant, "after": there}


def _versions(statuses: Mapping[str, pb.StatusResponse]) -> Iterator[Change]:
    for router, status in statuses.items():
        if status.router_version != __version__:
            field = f"routers[{router}].version"
            yield {"field": field, "before": __version__, "after": status.router_version}


def _remedies(members: Sequence[Change], *, is_placed: bool) -> Iterator[str]:
    """Says what becomes of those who are not as the file has them."""
    again = "'penstock up' replaces it" if is_placed else "serve again"
    for change in members:
        name, before, after = change["field"], change["before"], change["after"]
        if name.startswith("routers["):
            yield f"{name}: this release is {before}: {again}."
        elif after == ABSENT:
            yield f"{name} is not there: it is started again by itself ('penstock status', 'logs')."
        elif before != ABSENT:
            worker = name.partition("[")[2].rstrip("]")
            yield f"{name} was flipped: 'penstock flip {worker} --to {before}'."


def _would(document: ClusterDocument, described: ClusterDocument, folder: Path) -> Iterator[str]:
    """Says what 'penstock up' would do, by what it was told the last time."""
    try:
        before, after = (_orders(each, folder) for each in (described, document))
    except StartupError as error:
        yield f"What 'penstock up' would do is not known: {error.message}"
        return
    orders = {each.name: each.order.as_json() for each in before}
    todo = steps(after, [Placing(name=each.name, digest=each.digest) for each in before])
    told = {each.name: each.order.as_json() for each in todo.change}
    apart = {line for name, order in told.items() for line in divides(orders[name], order)}
    if apart:
        yield (
            f"'penstock up' refuses it: all of a cluster share {'; '.join(sorted(apart))}:"
            f" 'penstock down {document.metadata.name}' first."
        )
        return
    if todo.stop:
        yield f"'penstock up' drains and ends {', '.join(todo.stop)}."
    if todo.start:
        yield f"'penstock up' starts {', '.join(each.name for each in todo.start)}."
    whys = [(_why(each, orders[each.name]), each.name) for each in todo.change]
    for why, names in groupby(sorted(whys), key=lambda pair: pair[0]):
        yield f"'penstock up' replaces {', '.join(name for _, name in names)}: {why}."


def _orders(document: ClusterDocument, folder: Path) -> list[Wanted]:
    """Raises StartupError."""
    weights = weights_of(document.spec, folder, described=True)
    return staffed(wanted(document, folder, described=weights), document.spec.pools, running=())


def _why(each: Wanted, before: str) -> str:
    if each.name == PLANNER:
        return "what it is told of the pools"
    lines = order_differences(before, each.order.as_json())
    return "; ".join(lines) or "what is set aside for it"
