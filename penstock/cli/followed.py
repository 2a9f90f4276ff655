"""The policies that the routers of a cluster follow, beside the one that its file means: what was
applied stays, whatever the file says and however often the cluster is brought up again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import typer

from cluster.document.difference import Change, change_text, differences
from deploy.cluster_file.document import ClusterDocument
from deploy.cluster_file.kind import CLUSTER
from penstock.cli.cluster_calls import ask_cluster
from penstock.cli.documents import load_document
from penstock.cli.exit_codes import ExitCode
from penstock.cli.local import find_cluster, told_address
from penstock.cli.notes import running
from penstock.cli.output import fail, say, warn, write, write_json
from penstock.cli.placed_notes import placed_as
from penstock.errors import PenstockError
from penstock.v1 import worker_pb2 as pb
from router.policy_file.document import PolicyDocument, effective
from router.policy_file.kind import POLICY


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
    """Ends the command: 0 where all routers follow what the file means, 1 where one does not."""
    document = load_document(CLUSTER, file)
    meant = _meant(document, file.parent)
    routers, secrets = _routers(document.metadata.name, address, secrets_file)
    replies, silent = _replies(routers, secrets)
    found = _grouped(replies, meant)
    if json:
        write_json([each.as_json() for each in found])
    else:
        _tell(found)
    for router, error in silent.items():
        warn(
            f"{router} does not answer, and what it follows is not known: {error.message}"
            " A router that was placed anew is found after 'penstock up'."
        )
    if silent:
        raise typer.Exit(ExitCode.UNREACHABLE)
    raise typer.Exit(1 if any(each.differs for each in found) else 0)


def _meant(document: ClusterDocument, folder: Path) -> PolicyDocument:
    path = document.spec.policy_file
    return POLICY.load(folder / path) if path else POLICY.default()


def _routers(
    cluster: str, address: str | None, secrets_file: Path | None
) -> tuple[tuple[str, ...], Path]:
    """Finds where the routers of a cluster hear operators, and the secrets that let them in."""
    if told_address(address):
        where, secrets = find_cluster(address, secrets_file)
        return (where,), secrets
    known: list[tuple[tuple[str, ...], Path]] = [
        ((note.address,), note.secrets_file) for note in running() if note.name == cluster
    ]
    if (placed := placed_as(cluster)) is not None:
        known.append((placed.internal, Path(placed.secrets_file)))
    if not known:
        fail(
            f"No cluster '{cluster}' is known here: give the --address of a router of it, and its"
            " --secrets-file.",
            ExitCode.UNREACHABLE,
        )
    if len(known) > 1:
        doors = ", ".join(each for routers, _ in known for each in routers)
        fail(f"'{cluster}' is known at {doors}: name one with --address (-a).", ExitCode.USAGE)
    [(routers, secrets)] = known
    return routers, secrets_file or secrets


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
