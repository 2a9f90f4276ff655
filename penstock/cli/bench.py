"""`penstock bench`: what a cluster does under load. The running one, or one for the occasion."""

import asyncio
import json as json_module
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli import options
from penstock.cli.exit_codes import ExitCode, exit_code
from penstock.cli.output import fail, progress, say, write, write_json
from penstock.cli.way_in import ClientFiles, way_in
from penstock.errors import BY_REASON, PenstockError, UnreachableError
from penstock.load.generator import OfferedLoad
from penstock.load.report import as_table
from penstock.load.session import measure_load


def bench(
    address: options.Address = None,
    api_key: options.ApiKey = None,
    ca_file: options.CaFile = None,
    cert_file: options.CertFile = None,
    key_file: options.KeyFile = None,
    start: Annotated[
        bool, typer.Option("--start", help="Start a cluster, measure that, and stop it.")
    ] = False,
    model_dir: Annotated[
        Path | None,
        typer.Option("--model-dir", help="With --start: a checkpoint. Default: the shipped model."),
    ] = None,
    prefill: Annotated[
        int | None,
        typer.Option(
            "--prefill", min=0, max=1024, help="With --start: prefill workers. Default: 1."
        ),
    ] = None,
    decode: Annotated[
        int | None,
        typer.Option("--decode", min=1, max=1024, help="With --start: decode workers. Default: 1."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, max=1024, help="With --start: CPU threads a worker. Default: 1."
        ),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(
            "--num-blocks", min=1, help="With --start: KV blocks a worker. Default: 1024."
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option("--requests", min=1, max=1_000_000, help="So many.")
    ] = 100,
    concurrency: Annotated[
        int,
        typer.Option("--concurrency", min=1, max=10_000, help="So many at a time, without --rate."),
    ] = 4,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", min=0.001, max=100_000, help="Arrivals a second, at random. Default: none."
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", min=1, max=10_000_000, help="Of each prompt.")
    ] = 128,
    output_tokens: Annotated[
        int, typer.Option("--output-tokens", min=1, max=10_000_000, help="Of each answer.")
    ] = 64,
    shared_prefix: Annotated[
        int, typer.Option("--shared-prefix", min=0, help="Tokens that all prompts begin with.")
    ] = 0,
    unloaded: Annotated[
        int,
        typer.Option(
            "--unloaded", min=0, max=1_000_000, help="Before: so many, one at a time; 0: none."
        ),
    ] = 20,
    model: options.Model = "",
    service_class: options.ServiceClass = "",
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, max=86_400, help="Seconds for one request.")
    ] = 300.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of prompts and arrivals.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Write the JSON there, too. Default: none."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Measure a cluster under load: the one that runs, or with --start one of its own.

    Exits as the requests did where all that failed ended alike, else 1.

    Example: penstock bench --requests 200 --rate 5
    """
    own = {
        "model_dir": model_dir,
        "prefill": prefill,
        "decode": decode,
        "threads": threads,
        "blocks": blocks,
    }
    given = {name: value for name, value in own.items() if value is not None}
    _check(start, address, given, output)
    load = OfferedLoad(
        num_requests=requests,
        concurrency=concurrency,
        rate=rate,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        shared_prefix=shared_prefix,
        seed=seed,
        timeout_s=timeout,
        model=model,
        service_class=service_class,
    )
    files = ClientFiles(ca_file, cert_file, key_file)
    where, secured = ("", {}) if start else way_in(address, files)
    cluster = _started(given) if start else _running(where)
    report = asyncio.run(_measured(cluster, load, unloaded, {"api_key": api_key, **secured}))
    if output:
        _write_file(output, json_module.dumps(report, indent=2) + "\n")
    if json:
        write_json(report)
    else:
        write(as_table(report) + "\n")
    if errors := report["load"]["errors"]:
        count = ", ".join(f"{num} {reason}" for reason, num in errors.items())
        say(f"{sum(errors.values())} of {requests} requests failed: {count}.", style="red")
        raise typer.Exit(_code_of(errors))


def _check(start: bool, address: str | None, given: dict[str, Any], output: Path | None) -> None:
    if start and address:
        fail("Give '--start' or '--address', not both.", ExitCode.USAGE)
    if given and not start:
        flag = {"blocks": "num-blocks"}.get(name := next(iter(given)), name.replace("_", "-"))
        fail(
            f"'--{flag}' is of a cluster that is started for the measurement: add '--start'.",
            ExitCode.USAGE,
        )
    if output and not output.absolute().parent.is_dir():
        fail(f"There is no directory {output.absolute().parent} to write into.", ExitCode.USAGE)


@asynccontextmanager
async def _running(address: str) -> AsyncIterator[tuple[str, str, int | None]]:
    yield address, f"the cluster at {address}", None


@asynccontextmanager
async def _started(given: dict[str, Any]) -> AsyncIterator[tuple[str, str, int | None]]:
    from penstock.cli.cluster_options import ServeFlags, make_cluster

    async with make_cluster(ServeFlags(port=0, **given)) as cluster:
        pools = ", ".join(f"{pool.num} {pool.name}" for pool in cluster.plan.all_pools)
        workers = f"{pools}, {given.get('threads', 1)} thread(s) each"
        setup = f"{cluster.plan.model_name}: {workers}"
        yield cluster.address, setup, cluster.children["router"].pid


async def _measured(
    cluster: Any, load: OfferedLoad, num_unloaded: int, caller: dict[str, Any]
) -> dict[str, Any]:
    async with cluster as (address, setup, router_pid):
        with progress() as bar:

            def stage(what: str, num: int) -> Any:
                if bar.disable:
                    say(f"{num} requests, {what}.")
                task = bar.add_task(what, total=num)
                return lambda: bar.advance(task)

            report = await measure_load(
                address, load, caller=caller, num_unloaded=num_unloaded, stage=stage
            )
        if router_pid:
            report["router"] = {"resident_mb": _resident_mb(router_pid)}
    return {"setup": setup, **report}


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return round(kib * 1024 / 1e6, 1)


def _write_file(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        fail(f"'{path}' cannot be written: {error.strerror}.", ExitCode.USAGE)


def _code_of(errors: dict[str, int]) -> ExitCode:
    known: dict[str, type[PenstockError]] = {**BY_REASON, UnreachableError.reason: UnreachableError}
    codes = {exit_code(known.get(reason, PenstockError)("")) for reason in errors}
    return codes.pop() if len(codes) == 1 else ExitCode.FAILURE
