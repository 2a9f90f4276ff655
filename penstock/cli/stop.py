"""`penstock stop`: ends a cluster that `penstock serve` runs on this machine, from anywhere."""

import os
import select
import signal
from contextlib import suppress
from typing import Annotated

import typer

from penstock.cli import options
from penstock.cli.exit_codes import ExitCode
from penstock.cli.local import find_address, need_note
from penstock.cli.notes import LocalNote, running
from penstock.cli.output import fail, say, write_json


def stop(
    address: options.Address = None,
    now: Annotated[
        bool, typer.Option("--now", help="At once: answers in progress are cut off.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", min=0, help="Seconds to wait for its end. Default: until then."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Drain and stop the cluster that runs here.

    Requests in flight may end, no new one begins. Exits 6 when it has not ended in time; it
    drains on.

    Example: penstock stop -a 127.0.0.1:50051 --now
    """
    where = find_address(address)
    note = need_note(
        where, "processes that were started by hand are told by SIGTERM, those elsewhere there"
    )
    say(f"Stopping {note.address} (pid {note.pid}).")
    if not _has_ended(note, timeout, is_urgent=now):
        fail(f"{note.address} has not ended after {timeout:g} s: it drains.", ExitCode.DEADLINE)
    if json:
        write_json({"stopped": note.address, "pid": note.pid})
    else:
        say(f"Stopped {note.address}.")


def _has_ended(note: LocalNote, timeout_s: float | None, *, is_urgent: bool) -> bool:
    with suppress(ProcessLookupError):
        process = os.pidfd_open(note.pid)
        try:
            if note not in running():
                return True  # it ended before, and its pid may be another's
            signal.pidfd_send_signal(process, signal.SIGTERM)
            if is_urgent:  # another one: two of a kind may arrive as one
                signal.pidfd_send_signal(process, signal.SIGINT)
            ended, _, _ = select.select([process], [], [], timeout_s)
            return bool(ended)
        finally:
            os.close(process)
    return True
