"""Finds whose bundle it is: a cluster of this machine, one on a Ray, one that was started by hand,
or one that has ended; each as far as it is known here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from cluster.config import masked
from cluster.errors import StartupError
from deploy import on_machine
from deploy.run_dir import DESCRIBED, SECRETS
from penstock.cli.local import find_address, internal_door, known_cluster, told_address
from penstock.cli.log_source import LogSource, in_folder, last_kept
from penstock.cli.notes import LocalNote
from penstock.cli.placed_notes import PlacedNote, described, placed_as

MAX_CONFIG_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Holds what is known by other ways than its routers."""

    name: str = ""
    routers: tuple[str, ...] = ()  # their addresses
    secrets_file: Path | None = None
    token: str = field(default="", repr=False)  # of the Ray that it runs on
    logs: LogSource | None = None
    described: Callable[[], str] | None = None  # its file, as it is in force
    configs: Callable[[], Mapping[str, Any]] | None = None  # by process
    versions: Callable[[], Mapping[str, Any]]
    placement: Callable[[], Mapping[str, Any]] | None = None
    unheard: Sequence[str] = ()  # which machines told nothing, known once all has been asked for
    unknown: Mapping[str, str] = field(default_factory=dict)  # what is not to be had, and why


@contextmanager
def found_subject(
    address: str | None, secrets_file: Path | None, cluster: str | None, ray: str | None
) -> Iterator[Subject]:
    """Finds a cluster that may be asked until the block ends. Ends the command where there is
    nothing. `address`: beside a cluster on Ray the one router to ask, whichever Ray knows."""
    known = None if cluster or ray else known_cluster(address)
    with ExitStack() as until_asked:
        if cluster or ray:
            found = until_asked.enter_context(_placed(cluster, ray, placed_as(cluster)))
            if address:
                found = replace(found, routers=(internal_door(find_address(address)),))
        elif isinstance(known, PlacedNote):
            found = until_asked.enter_context(_placed(known.name, known.ray, known))
        elif known is not None:
            found = _local(known)
        elif told_address(address) or secrets_file:
            found = Subject(routers=(internal_door(find_address(address)),), versions=_versions)
        else:
            found = Subject(logs=in_folder(last_kept(None)), versions=_versions)
        yield replace(found, secrets_file=secrets_file or found.secrets_file)


def _versions() -> Mapping[str, Any]:
    return {"this machine": on_machine.versions()}


def _local(note: LocalNote) -> Subject:
    run_dir = Path(note.run_dir)
    return Subject(
        name=note.name,
        routers=(note.internal or note.address,),
        secrets_file=note.secrets_file,
        logs=in_folder(Path(note.log_dir)),
        described=(run_dir / DESCRIBED).read_text,
        configs=partial(_configs, run_dir),
        versions=_versions,
    )


def _configs(run_dir: Path) -> Mapping[str, Any]:
    """Reads the processes' configurations, as their launcher wrote them."""
    paths = [path for path in run_dir.glob("*.yaml") if path.name not in (SECRETS, DESCRIBED)]
    return {path.stem: masked(_loaded(path)) for path in sorted(paths)}


def _loaded(path: Path) -> Any:
    with path.open("rb") as file:
        return yaml.safe_load(file.read(MAX_CONFIG_BYTES))


@contextmanager
def _placed(cluster: str | None, ray: str | None, note: PlacedNote | None) -> Iterator[Subject]:
    """Finds what Ray placed. Without Ray what its routers say is still to be had, where it is known
    which those are."""
    from deploy.bundle.placed_facts import PlacedFacts
    from penstock.cli.on_ray import logs_of, ray_with

    known = _noted(note) if note else None
    with ExitStack() as until_asked:
        try:
            found, name = until_asked.enter_context(ray_with(cluster, ray))
        except StartupError as error:
            if known is None:
                raise
            unasked = dict.fromkeys(("logs", "configuration", "placement.json"), error.message)
            yield replace(known, unknown=unasked)
            return
        facts = PlacedFacts(found, name)
        unheard: list[str] = []
        told = facts.secrets_file()
        secrets_file = known.secrets_file if known else Path(told) if told else None
        yield Subject(
            name=name,
            routers=facts.routers() or (known.routers if known else ()),
            secrets_file=secrets_file,
            token=found.token,
            logs=logs_of(found, name, say=unheard.append),
            unheard=unheard,
            described=partial(described, name),
            configs=facts.configs,
            versions=lambda: {**_versions(), **facts.versions()},
            placement=facts.placement,
        )


def _noted(note: PlacedNote) -> Subject:
    return Subject(
        name=note.name,
        routers=note.internal,
        secrets_file=Path(note.secrets_file),
        described=partial(described, note.name),
        versions=_versions,
    )
