"""`penstock planner`: what the planner of a cluster on Ray wants and why, and what one would do."""

import asyncio
import os
import signal
import socket
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Final

import typer

from cluster.config import parse_config
from cluster.errors import ConfigError
from cluster.process import configure_logging
from cluster.secrets import load_secrets
from deploy.cluster_file.document import ClusterDocument
from deploy.cluster_file.kind import CLUSTER
from deploy.placement import PLANNER, wanted
from deploy.planner.config import PlannerConfig
from deploy.planner.process import open_store, planning
from deploy.planner.record import PlannerRecord, read_record
from penstock.cli import options
from penstock.cli.app import told
from penstock.cli.cluster_options import weights_of
from penstock.cli.exit_codes import ExitCode
from penstock.cli.output import fail, say, write, write_json
from penstock.cli.placed_notes import described, placed

_MISSED: Final = 5  # looks, after which it is taken to be gone

planner = typer.Typer(
    help="The planner of a cluster on Ray: what it wants, and why.",
    add_completion=False,
    no_args_is_help=True,
)
File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="The cluster's description. Default: of the one that 'penstock up' left.",
    ),
]


@planner.command()
@told
def status(file: File = None, json: options.Json = False) -> None:
    """Show how many workers the planner sees and wants, why, and what it did last.

    It is read from the cluster's Redis. Exits 8 when no planner looked lately.

    Example: penstock planner status
    """
    document, folder = _document(file)
    record = asyncio.run(_record(document, folder))
    if record is None:
        fail(f"No planner of '{document.metadata.name}' has looked yet.", ExitCode.UNHEALTHY)
    age_s = max(0.0, time.time() - record.unix_s)
    is_gone = age_s > _MISSED * record.interval_s
    if json:
        write_json({**asdict(record), "age_seconds": age_s, "gone": is_gone})
    else:
        write(_text(record, age_s, is_gone=is_gone))
    if is_gone:
        raise typer.Exit(ExitCode.UNHEALTHY)


@planner.command()
@told
def watch(
    file: Annotated[
        Path, typer.Option("--file", "-f", metavar="FILE", help="The cluster's description.")
    ],
    ray: options.Ray = None,
    once: Annotated[bool, typer.Option("--once", help="One look.")] = False,
    json: options.Json = False,
) -> None:
    """Say what a planner would do with these bounds and settings, and do nothing.

    It needs the way to Ray, to the Redis and to the routers, and may run beside the planner that
    decides. Until Ctrl-C.

    Example: penstock planner watch -f cluster.yaml
    """
    document = CLUSTER.load(file)
    described_at = weights_of(document.spec, described=True)
    possible = wanted(document, file.parent, described=described_at)
    orders = [each.order for each in possible if each.name == PLANNER]
    if not orders:
        fail("No pool may grow: give one a 'maxWorkers' above its 'minWorkers'.", ExitCode.USAGE)
    config = parse_config(PlannerConfig, dict(orders[0].config), source=str(file))
    settings = replace(config.settings, dry_run=True)
    configure_logging()
    config = replace(config, settings=settings, ray=ray)
    asyncio.run(_watch(config, is_once=once, json=json))


async def _watch(config: PlannerConfig, *, is_once: bool, json: bool) -> None:
    end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    async with planning(config, name=f"{socket.gethostname()}:{os.getpid()}") as loop:
        if not is_once:
            say(f"A look every {config.settings.interval_s:g} s; Ctrl-C ends it.")
        while not end.is_set():
            await loop.turn()
            if (record := loop.record) is not None:
                if json:
                    write_json(asdict(record))
                else:
                    write(_text(record, 0.0, is_gone=False))
            if is_once:
                break
            await loop.pause(end)


async def _record(document: ClusterDocument, folder: Path) -> PlannerRecord | None:
    spec = document.spec
    if spec.secrets_file is None or "://" not in spec.store:
        raise ConfigError(
            f"'{document.metadata.name}' is no cluster of many machines: it has no 'store' that"
            " others reach, or no 'secretsFile'."
        )
    secrets = load_secrets(folder / spec.secrets_file)
    store = open_store(spec.store, document.metadata.name, secrets)
    try:
        return await read_record(store)
    finally:
        await store.close()


def _document(file: Path | None) -> tuple[ClusterDocument, Path]:
    """And the folder in which relative paths begin."""
    if file is not None:
        return CLUSTER.load(file), file.parent
    notes = placed()
    if len(notes) != 1:
        names = ", ".join(note.name for note in notes) or "none"
        fail(f"Give the cluster's --file: 'penstock up' left {names} here.", ExitCode.USAGE)
    [note] = notes
    try:
        document = CLUSTER.parse(described(note.name), note.name)
    except OSError as error:
        fail(f"Give the cluster's --file: what 'up' left cannot be read ({error}).", ExitCode.USAGE)
    spec = replace(document.spec, secrets_file=Path(note.secrets_file))
    return replace(document, spec=spec), Path()


def _text(record: PlannerRecord, age_s: float, *, is_gone: bool) -> str:
    lines = [
        f"{record.now} workers (prefill+decode), wanted {record.wanted}: {record.why}",
        f"decided {age_s:.0f} s ago by {record.holder}" + (": IT IS GONE" if is_gone else ""),
    ]
    if record.leaving:
        lines.append(f"draining: {', '.join(record.leaving)}")
    if record.trouble:
        lines.append(f"TROUBLE: {record.trouble}")
    if record.terms:
        lines.append("  ".join(f"{name} {value:.3g}" for name, value in record.terms.items()))
    if record.past:
        lines += ["", "What it did, the last first:"]
    for change in reversed(record.past):
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(change.unix_s))
        lines.append(f"  {at}  {change.text}")
    return "\n".join([*lines, ""])
