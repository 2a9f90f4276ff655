"""Finds the cluster a command talks to: the flag, else PENSTOCK_ADDRESS, else the one that runs on
this machine, else the default address."""

import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.run_dir import LOCK
from penstock import InvalidRequestError
from penstock.address import bare, with_port
from penstock.cli.exit_codes import CommandError, ExitCode
from penstock.cli.notes import LocalNote, running
from penstock.cli.output import fail
from penstock.cli.placed_notes import PlacedNote, placed, placed_at

DEFAULT_ADDRESS = "127.0.0.1:50051"
ADDRESS_VARIABLE = "PENSTOCK_ADDRESS"
ROUTER_S = 0.5  # to connect to one of several


def told_address(flag: str | None) -> str | None:
    """Reads what a person said, if anything. Ends the command where it is no address."""
    said = flag or os.environ.get(ADDRESS_VARIABLE)
    return usable_address(said) if said else None


def find_address(flag: str | None) -> str:
    """Finds where clients come in. Ends the command where several clusters are known and none of
    them was named."""
    return _found(flag, {note.name: note.routers for note in placed()})


def find_cluster(flag: str | None, secrets_flag: Path | None) -> tuple[str, Path]:
    """Finds where operators come in, and the secrets that let them in. Ends the command
    likewise."""
    where = _found(flag, {note.name: note.internal for note in placed()})
    return internal_door(where), need_secrets(secrets_flag, where)


def internal_door(address: str) -> str:
    """Says where operators come in at the cluster that clients reach by an address: elsewhere if
    clients speak TLS."""
    note = find_note(address)
    return (note.internal if note else "") or bare(address)


def _found(flag: str | None, elsewhere: Mapping[str, Sequence[str]]) -> str:
    """`elsewhere`: by cluster, the addresses of its routers."""
    if told := told_address(flag):
        return told
    notes = running()
    answering = {name: where for name, each in elsewhere.items() if (where := _answering(each))}
    if len(notes) + len(answering) > 1:
        on_ray = (f"  {where}  {name}  (on Ray)" for name, where in answering.items())
        fail(
            "Several clusters run: name one with --address (-a).\n"
            + "\n".join([*([_list(notes)] if notes else []), *on_ray]),
            ExitCode.USAGE,
        )
    # A note of one that nobody took down may be all that is known: it is named, then.
    known = [note.address for note in notes] + [*answering.values()]
    known += [each[0] for each in elsewhere.values()]
    return known[0] if known else DEFAULT_ADDRESS


def known_cluster(flag: str | None) -> LocalNote | PlacedNote | None:
    """Gives what is known of the cluster that is meant; None: nothing. Ends the command where
    several are known and none of them was named."""
    if not (told_address(flag) or running() or placed()):
        return None
    return known_at(find_address(flag))


def known_at(address: str) -> LocalNote | PlacedNote | None:
    """The cluster that is reached there. One that runs here does so for certain: a note of what was
    placed may be out of date, and a front door on loopback may have the address of one here."""
    return find_note(address) or placed_at(bare(address))


def is_found(address: str) -> bool:
    """Tells whether commands find the cluster at this address by themselves."""
    try:
        return find_address(None) == address
    except CommandError:
        return False


def usable_address(given: str) -> str:
    """Completes an address with its port. Ends the command where it is none."""
    try:
        return with_port(given)
    except InvalidRequestError as error:
        fail(error.message, ExitCode.USAGE)


def started_workers(secrets_file: Path) -> list[str]:
    """Names the workers whose configurations lie beside the secrets, in the directory of a cluster
    that runs on this machine."""
    if not (secrets_file.parent / LOCK).exists():
        return []
    return sorted(path.stem for path in secrets_file.parent.glob("*-*.yaml"))


def find_note(address: str) -> LocalNote | None:
    """Finds the note of the cluster that runs here and is reached by this address, however it is
    written."""
    return next((note for note in running() if note.is_at(bare(address))), None)


def need_note(address: str, otherwise: str) -> LocalNote:
    """The same. Ends the command where there is none; `otherwise`: what else may be done."""
    note = find_note(address)
    if note is None:
        if (elsewhere := placed_at(bare(address))) is not None:
            fail(
                f"'{elsewhere.name}' runs on the machines of a Ray, not here: 'penstock down"
                f" {elsewhere.name}' ends it.",
                ExitCode.USAGE,
            )
        notes = running()
        known = f" These do:\n{_list(notes)}" if notes else ""
        fail(
            f"No cluster is known to run at {address} on this machine: {otherwise}.{known}",
            ExitCode.UNREACHABLE,
        )
    return note


def need_secrets(flag: Path | None, address: str) -> Path:
    """The secrets file of the cluster at an address, where one is known here. Ends the command
    where there is none."""
    if flag:
        return flag
    if (known := known_at(address)) is not None:
        return Path(known.secrets_file)
    advice = (
        "start one with 'penstock serve', or give --secrets-file where its processes were started"
        " by hand or run elsewhere"
    )
    return need_note(address, advice).secrets_file


def _answering(routers: Sequence[str]) -> str | None:
    """The first that can be reached."""
    for address in routers:
        with contextlib.suppress(OSError, ValueError):
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), ROUTER_S).close()
            return address
    return None


def _list(notes: Sequence[LocalNote]) -> str:
    return "\n".join(
        f"  {note.address}  {note.name or '-'}  {note.model}  (pid {note.pid})" for note in notes
    )
