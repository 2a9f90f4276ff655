"""`penstock serve`: a whole cluster on this machine, until Ctrl-C."""

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cluster import log
from cluster.log import LogFormat, LogLevel
from cluster.process import LOG_VARIABLE
from deploy.launcher import LocalCluster
from deploy.log_dir import default_log_root, open_log_dir
from penstock.cli import options
from penstock.cli.cluster_options import ServeFlags, make_cluster, ready_text, ready_value
from penstock.cli.exit_codes import ExitCode
from penstock.cli.notes import LocalNote, noted, this_machine
from penstock.cli.output import announce, json_line, say, warn
from router.policy import Disaggregate

logger = logging.getLogger(__name__)


def serve(
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="A cluster's description. Default: none."
        ),
    ] = None,
    model_dir: options.ModelDir = None,
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="NAME", help="What clients call it. Default: the directory's name."
        ),
    ] = "",
    prefill: Annotated[
        int | None,
        typer.Option("--prefill", min=0, max=1024, help="Prefill workers. Default: 1."),
    ] = None,
    decode: Annotated[
        int | None, typer.Option("--decode", min=1, max=1024, help="Decode workers. Default: 1.")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Where the router listens. Default: 127.0.0.1.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Others than this machine may come in, unasked.")
    ] = False,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            metavar="FILE",
            help="Callers' API keys ('penstock keys'), as they change. Default: nobody is asked.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            "--tls-cert",
            metavar="FILE",
            help="Clients are shown this certificate, as it changes. Default: none, and no TLS.",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="Its key. Default: none.")
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            "--tls-client-ca",
            metavar="FILE",
            help="Only clients with a certificate that it signed come in. Default: all do.",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="0: any free. Default: 50051."),
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(
            "--http-port",
            min=0,
            max=65535,
            help="For OpenAI's clients; 0: any free. Default: 8000; with --port: any free.",
        ),
    ] = None,
    no_http: Annotated[bool, typer.Option("--no-http", help="gRPC alone.")] = False,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, max=1024, help="CPU threads a worker. Default: 1."),
    ] = None,
    blocks: Annotated[
        int | None, typer.Option("--num-blocks", min=1, help="KV blocks a worker. Default: 1024.")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option("--block-size", min=1, help="Tokens a block. Default: 16.")
    ] = None,
    drain: Annotated[
        float | None,
        typer.Option("--drain", min=0, help="Seconds to end requests. Default: 30."),
    ] = None,
    transport: Annotated[
        str,
        typer.Option(
            "--transport",
            metavar="NAME",
            help="KV moves by this transport or not at all. Default: the best.",
        ),
    ] = "",
    disaggregate: Annotated[
        Disaggregate | None,
        typer.Option("--disaggregate", help="When a prefill worker is used. Default: auto."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", metavar="FILE", help="Placement by this file, as it changes. Default: none."
        ),
    ] = None,
    log_dir: Annotated[
        Path | None,
        typer.Option(
            "--log-dir", metavar="DIR", help="Logs go here. Default: the user's state directory."
        ),
    ] = None,
    log_level: Annotated[
        LogLevel | None, typer.Option("--log-level", help="Default: $PENSTOCK_LOG, else info.")
    ] = None,
    log_format: Annotated[
        LogFormat | None,
        typer.Option("--log-format", help="A line a record, text or json. Default: text."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Serve a model: one router, prefill and decode workers, on this machine.

    What is said here goes before what the file says; how many workers there are and how large,
    the file alone says.

    Example: penstock serve --prefill 2 --decode 1 --port 0 --json
    """
    flags = ServeFlags(
        file=file,
        model_dir=model_dir,
        model=model,
        prefill=prefill,
        decode=decode,
        host=None if host is None else host.strip("[]"),
        insecure=insecure,
        keys=keys,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        port=port,
        http_port=http_port,
        no_http=no_http,
        threads=threads,
        blocks=blocks,
        block_size=block_size,
        drain=drain,
        transport=transport,
        disaggregate=disaggregate,
        policy=policy,
        log_level=log_level,
        log_format=log_format,
    )
    cluster = make_cluster(flags)
    with _logged(cluster, log_dir):
        asyncio.run(_serve(cluster, json))


@contextmanager
def _logged(cluster: LocalCluster, root: Path | None) -> Iterator[None]:
    """Logs stay, where they can be written; the cluster serves all the same."""
    with ExitStack() as until_the_end:
        try:
            folder = until_the_end.enter_context(open_log_dir(root or default_log_root()))
        except OSError as error:
            warn(f"logs go when the cluster ends: none can be kept ({error}).")
        else:
            cluster.keep_logs_in(folder)
            level = cluster.plan.log_level or os.environ.get(LOG_VARIABLE, "info")
            # Its stderr is the terminal's.
            own = folder / "serve.log"
            style, levels = cluster.plan.log_format or "text", cluster.plan.log_levels
            log.configure(level, style, own, levels=levels, takes_stderr=False)
        yield


async def _serve(cluster: LocalCluster, json: bool) -> None:
    stop = Interrupts(cluster)
    say("Starting.")
    try:
        async with cluster:
            stop.is_started = True
            with _noted(cluster):
                announce(json_line(ready_value(cluster)) if json else ready_text(cluster))
                await cluster.supervise(until=stop.wait())
            say("Draining; Ctrl-C once more ends at once.")
    except asyncio.CancelledError:
        say("Stopped before it was ready.")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    say("Stopped.")
    logger.info("stopped")


@contextmanager
def _noted(cluster: LocalCluster) -> Iterator[None]:
    """Other commands find the cluster by a note, where one can be left."""
    note = LocalNote(
        address=cluster.address,
        internal=cluster.internal,
        certificate=str(cluster.plan.tls.certificate) if cluster.plan.tls else "",
        listens=cluster.listens,
        run_dir=str(cluster.run_dir),
        log_dir=str(cluster.log_dir),
        pid=os.getpid(),
        model=cluster.plan.model_name,
        name=cluster.plan.name,
        machine=this_machine(),
    )
    with ExitStack() as left:
        try:
            left.enter_context(noted(note))
        except OSError as error:
            warn(
                f"other commands do not find this cluster by themselves ({error}): give them"
                f" --address {cluster.internal} --secrets-file {cluster.secrets_file}."
            )
        yield


class Interrupts:
    """Ctrl-C and SIGTERM: during the start they end it, then they drain, then they kill."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.is_started = False
        self._cluster = cluster
        self._asked = asyncio.Event()
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupted, number)

    async def wait(self) -> None:
        """Waits until the first signal after the start."""
        await self._asked.wait()

    def _interrupted(self, number: signal.Signals) -> None:
        logger.info("%s was sent to this cluster", number.name)
        if self._asked.is_set():
            self._cluster.kill()
        elif not self.is_started and self._task:
            self._task.cancel()
        self._asked.set()
