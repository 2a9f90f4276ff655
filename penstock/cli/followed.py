"""A cluster's file beside what runs: the policies that its routers follow, of which one that was
applied stays, whatever the file says, and all else (`penstock/cli/in_force.py`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import typer

from cluster.document.difference import Change, change_text, differences
from cluster.errors import ConfigError
from deploy.cluster_file.document import ClusterDocument
from deploy.cluster_file.kind import CLUSTER
from deploy.run_dir import DESCRIBED
from penstock.cli.cluster_calls import ask_cluster
from penstock.cli.documents import load_document
from penstock.cli.exit_codes import ExitCode
from penstock.cli.in_force import in_force
from penstock.cli.local import find_cluster, known_at, told_address
from penstock.cli.notes import LocalNote, running
from penstock.cli.output import fail, say, warn, write, write_json
from penstock.cli.placed_notes import PlacedNote, described, placed_as
from penstock.cli.status import fetch_status
from penstock.errors import PenstockError
from penstock.v1 import worker_pb2 as pb
from router.policy_file.document import PolicyDocument, effective
from router.policy_file.kind import POLICY


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCluster:
    """Says how a cluster that runs is asked, and where it is written by what it was started."""

    routers: tuple[str, ...]
    secrets: Path
    read: Callable[[], str] | None = None  # may raise OSError
    is_placed: bool = False  # by 'penstock up'

    def described(self) -> ClusterDocument | None:
        """None: nobody here knows, or another release wrote it, in other words."""
        try:
            text = self.read() if self.read else ""
            return CLUSTER.parse(text, "what runs") if text else None
        except (OSError, ConfigError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """Holds what some routers follow alike."""

    routers: tuple[str, ...]
    active: pb.PolicyGeneration
    canary: pb.PolicyGeneration | None
    changes: list[Change]  # from what the file means

    @property
    def differs(self) -> bool:
        return bool(self.changes) or self.canary is not None

    def as_text(self) -> str:
        several = len(self.routers) > 1
        tried = f", and {'try' if several else 'tries'} out {_named(self.canary)}"
        return (
            f"{', '.join(self.routers)} {'follow' if several else 'follows'}"
            f" {_named(self.active)} from {self.active.source}{tried if self.canary else ''}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "routers": list(self.routers),
            "active": _generation_json(self.active),
            "canary": _generation_json(self.canary) if self.canary else None,
            "changes": self.changes,
        }


def compare_with_running(
    file: Path, address: str | None, secrets_file: Path | None, *, json: bool
) -> NoReturn:
    """Ends the command: 0 where all runs as the file means, 1 where something does not."""
    document = load_document(CLUSTER, file)
    meant = _meant(document, file.parent)
    known = _known(document.metadata.name, address, secrets_file)
    replies, silent = _replies(known.routers, known.secrets)
    found = _grouped(replies, meant)
    statuses = {each: fetch_status(each, known.secrets) for each in replies}
    cluster = in_force(
        document, file.parent, known.described(), statuses, is_placed=known.is_placed
    )
    if json:
        write_json({"cluster": cluster.as_json(), "policies": [each.as_json() for each in found]})
    else:
        write(cluster.as_text())
        _tell(found)
    if cluster.described is None:
        warn(
            "by which file it was started is not known here: of pools and settings only what its"
            " routers say was compared. The machine where it was typed knows."
        )
    for router, error in silent.items():
        warn(
            f"{router} does not answer, and what it follows is not known: {error.message}"
            " A router that was placed anew is found after 'penstock up'."
        )
    if silent:
        raise typer.Exit(ExitCode.UNREACHABLE)
    raise typer.Exit(1 if cluster.differs or any(each.differs for each in found) else 0)


def _meant(document: ClusterDocument, folder: Path) -> PolicyDocument:
    path = document.spec.policy_file
    return POLICY.load(folder / path) if path else POLICY.default()


def _known(cluster: str, address: str | None, secrets_file: Path | None) -> KnownCluster:
    """Finds where the routers of a cluster hear operators, and the secrets that let them in."""
    if told_address(address):
        where, secrets = find_cluster(address, secrets_file)
        noted = known_at(where)
        if noted is not None and noted.name == cluster:
            return replace(_of_note(noted), routers=(where,), secrets=secrets)
        return KnownCluster(routers=(where,), secrets=secrets)
    known = [_of_note(note) for note in running() if note.name == cluster]
    if (placed := placed_as(cluster)) is not None:
        known.append(_of_note(placed))
    if not known:
        fail(
            f"No cluster '{cluster}' is known here: give the --address of a router of it, and its"
            " --secrets-file.",
            ExitCode.UNREACHABLE,
        )
    if len(known) > 1:
        doors = ", ".join(door for each in known for door in each.routers)
        fail(f"'{cluster}' is known at {doors}: name one with --address (-a).", ExitCode.USAGE)
    return replace(known[0], secrets=secrets_file or known[0].secrets)


def _of_note(note: LocalNote | PlacedNote) -> KnownCluster:
    if isinstance(note, LocalNote):
        read = (Path(note.run_dir) / DESCRIBED).read_text
        return KnownCluster(
            routers=(note.internal or note.address,), secrets=note.secrets_file, read=read
        )
    return KnownCluster(
        routers=note.internal,
        secrets=Path(note.secrets_file),
        read=partial(described, note.name),
        is_placed=True,
    )


def _replies(
    routers: Sequence[str], secrets: Path
) -> tuple[dict[str, pb.PolicyStatusResponse], dict[str, PenstockError]]:
    """Gathers, by router, what it says, or why it does not. Raises PenstockError where none
    answers."""
    said: dict[str, pb.PolicyStatusResponse] = {}
    silent: dict[str, PenstockError] = {}
    for router in routers:
        try:
            said[router] = ask_cluster("PolicyStatus", pb.PolicyStatusRequest(), router, secrets)
        except PenstockError as error:
            silent[router] = error
    if not said:
        raise silent[routers[0]]
    return said, silent


def _grouped(replies: dict[str, pb.PolicyStatusResponse], meant: PolicyDocument) -> list[Followed]:
    groups: dict[tuple[str, str], list[str]] = {}
    for router, reply in replies.items():
        groups.setdefault((reply.active.digest, reply.canary.digest), []).append(router)
    return [_followed(routers, replies[routers[0]], meant) for routers in groups.values()]


def _followed(
    routers: Sequence[str], reply: pb.PolicyStatusResponse, meant: PolicyDocument
) -> Followed:
    active = POLICY.parse(reply.active.text, f"the policy at {routers[0]}")
    return Followed(
        routers=tuple(routers),
        active=reply.active,
        canary=reply.canary if reply.HasField("canary") else None,
        changes=differences(effective(meant), effective(active)),
    )


def _tell(found: Sequence[Followed]) -> None:
    """Prints what differs; of whom, too, where routers do not agree."""
    if len(found) == 1:
        say(found[0].as_text())
        write("".join(f"{change_text(change)}\n" for change in found[0].changes))
        return
    for each in found:
        write(f"{each.as_text()}\n")
        write("".join(f"  {change_text(change)}\n" for change in each.changes))


def _named(generation: pb.PolicyGeneration | None) -> str:
    if generation is None:
        return ""
    return f"generation {generation.number} '{generation.name}' ({generation.digest})"


def _generation_json(generation: pb.PolicyGeneration) -> dict[str, Any]:
    keys = ("number", "name", "digest", "source")
    return {key: getattr(generation, key) for key in keys}
