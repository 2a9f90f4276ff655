"""`penstock top`: the cluster as it goes, on a terminal; one table for scripts."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cluster.addresses import Endpoint
from penstock.api_key import call_metadata
from penstock.cli import options
from penstock.cli.exit_codes import ExitCode
from penstock.cli.local import find_cluster
from penstock.cli.output import fail, write, write_json, write_table
from penstock.cli.status import fetch_status
from penstock.cli.top import plain
from penstock.cli.top.columns import BY_KEY, ROLES
from penstock.cli.top.inside import Inside, Unasked
from penstock.cli.top.pages import NO_TOKEN
from penstock.cli.top.scrape import Access, Url
from penstock.cli.top.watch import Pace, View, Watch
from penstock.cli.top.workers import WorkerHealth

_WELL: Final = (WorkerHealth.SERVING, WorkerHealth.LEFT)

Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metrics",
        metavar="URL",
        help="A router's page, as http://HOST:PORT/metrics; repeatable. Default: that of the"
        " cluster that is found as 'penstock status' finds it.",
    ),
]


def top(
    metrics: Metrics = None,
    address: options.Address = None,
    secrets_file: options.SecretsFile = None,
    api_key: options.ApiKey = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            "--ca-file",
            metavar="FILE",
            help="Who signed the routers' certificates. Default: the system's roots.",
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option("--interval", min=0.2, max=60, help="Seconds between two looks.")
    ] = 2.0,
    window: Annotated[
        float, typer.Option("--window", min=1, max=300, help="Seconds that figures are of.")
    ] = 10.0,
    sort: Annotated[
        str, typer.Option("--sort", metavar="COLUMN", help=f"One of {', '.join(BY_KEY)}.")
    ] = "worker",
    role: Annotated[
        str, typer.Option("--role", metavar="ROLE", help="Only prefill, or decode. Default: all.")
    ] = "",
    once: Annotated[
        bool,
        typer.Option("--once", help="Print one table and end; so without a terminal."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Watch the cluster live: who is slow, which requests were late, what a policy changed.

    It reads what Prometheus reads. With the cluster's token it tells besides which requests were
    late and why they went where they went. With --once it exits 8 when a worker does not serve.

    Example: penstock top --metrics http://127.0.0.1:8000/metrics --once
    """
    _check("--sort", sort, tuple(BY_KEY))
    _check("--role", role, ROLES)
    pages, inside = _found(metrics, address, secrets_file)
    authorization = dict(call_metadata(api_key)).get("authorization", "")
    watch = Watch(pages, Pace(interval, window), access=Access.of(authorization, ca_file))
    if once or json or not (sys.stdout.isatty() and sys.stdin.isatty()):
        _print(asyncio.run(_looked(watch)), inside, json=json, sort=sort, role=role)
        return
    from penstock.cli.top.screen import show  # here: its library takes 0.1 s to import

    show(watch, inside, sort=sort, role=role)


def _check(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        names = ", ".join(each for each in known if each)
        fail(f"'{option} {given}' is none of {names}.", ExitCode.USAGE)


def _found(
    metrics: list[str] | None, address: str | None, secrets_file: Any
) -> tuple[list[Url], Inside | None]:
    """Where to look; and where to ask what only the cluster's own are told. A page that was named
    says nothing of that: it may be another cluster's than the one found here."""
    is_named = bool(address or secrets_file)
    inside = Inside(*find_cluster(address, secrets_file)) if is_named or not metrics else None
    if metrics:
        return [Url.parse(each) for each in metrics], inside
    assert inside is not None
    told = fetch_status(inside.address, inside.secrets_file).metrics
    if not told:
        fail(
            f"The router at {inside.address} has no port for who scrapes: name its HTTP door, as"
            " --metrics http://HOST:PORT/metrics.",
            ExitCode.UNREACHABLE,
        )
    return [Url.parse(str(Endpoint.parse(told).to_dial))], inside


async def _looked(watch: Watch) -> View:
    """Looks twice: rates are differences."""
    await watch.look()
    await asyncio.sleep(watch.pace.interval_s)
    await watch.look()
    return watch.view()


def _print(view: View, inside: Inside | None, *, json: bool, sort: str, role: str) -> None:
    if view.unheard and not view.workers:
        lost = view.unheard[0]
        fail(f"No router tells its metrics at {lost.url}: {lost.error}.", ExitCode.UNREACHABLE)
    if json:
        write_json({**plain.value(view), **_late(inside)})
    else:
        write("".join(f"{line}\n" for line in plain.lines(view)) + "\n")
        write_table(plain.TITLES, plain.table(view, by=sort, role=role))
    if not view.workers or any(each.health not in _WELL for each in view.workers):
        raise typer.Exit(ExitCode.UNHEALTHY)


def _late(inside: Inside | None) -> dict[str, Any]:
    """Late requests are null where nobody tells, and `missing` says why."""
    try:
        if inside is None:
            raise Unasked(NO_TOKEN)
        return {"late": [each._asdict() for each in inside.late()], "missing": ""}
    except Unasked as error:
        return {"late": None, "missing": str(error)}
