"""Which cluster a command talks to: the flag, else PENSTOCK_ADDRESS, else the one that runs on
this machine, else the default address."""

import os
from collections.abc import Sequence
from pathlib import Path

from penstock import Client, InvalidRequestError
from penstock.address import with_port
from penstock.cli.exit_codes import ExitCode
from penstock.cli.notes import LocalNote, running
from penstock.cli.output import fail

DEFAULT_ADDRESS = "127.0.0.1:50051"
ADDRESS_VARIABLE = "PENSTOCK_ADDRESS"


def find_address(flag: str | None) -> str:
    """Ends the command where several clusters run here and none of them was named."""
    if address := flag or os.environ.get(ADDRESS_VARIABLE):
        return usable_address(address)
    notes = running()
    if len(notes) > 1:
        fail(
            f"Several clusters run on this machine: name one with --address (-a).\n{_list(notes)}",
            ExitCode.USAGE,
        )
    return notes[0].address if notes else DEFAULT_ADDRESS


def is_found(address: str) -> bool:
    """Whether commands find the cluster at this address by themselves."""
    said = os.environ.get(ADDRESS_VARIABLE)
    notes = running()
    found = said or (notes[0].address if notes else DEFAULT_ADDRESS)
    return found == address and (bool(said) or len(notes) <= 1)


def usable_address(given: str) -> str:
    """With its port. Ends the command where it is none."""
    try:
        return with_port(given)
    except InvalidRequestError as error:
        fail(error.message, ExitCode.USAGE)


def open_client(address_flag: str | None) -> Client:
    """A client that waits for no server: who typed a command wants to know at once."""
    return Client(find_address(address_flag), connect_timeout=0, reconnect_timeout=0)


def started_workers(secrets_file: Path) -> list[str]:
    """Those whose configurations lie beside the secrets: a cluster of this machine's."""
    return sorted(path.stem for path in secrets_file.parent.glob("*-*.yaml"))


def find_note(address: str) -> LocalNote | None:
    """Of the cluster that runs here and is reached by this address, however it is written."""
    return next((note for note in running() if note.is_at(address)), None)


def need_note(address: str, otherwise: str) -> LocalNote:
    """The same. Ends the command where there is none; `otherwise`: what else may be done."""
    note = find_note(address)
    if note is None:
        notes = running()
        known = f" These do:\n{_list(notes)}" if notes else ""
        fail(
            f"No cluster is known to run at {address} on this machine: {otherwise}.{known}",
            ExitCode.UNREACHABLE,
        )
    return note


def need_secrets(flag: Path | None, address: str) -> Path:
    """The secrets file of the cluster at an address, where it runs on this machine. Ends the
    command where there is none."""
    if flag:
        return flag
    advice = (
        "start one with 'penstock serve', or give --secrets-file where its processes were started"
        " by hand or run elsewhere"
    )
    return need_note(address, advice).secrets_file


def _list(notes: Sequence[LocalNote]) -> str:
    return "\n".join(f"  {note.address}  {note.model}  (pid {note.pid})" for note in notes)
