"""Which cluster a command talks to: the flag, else PENSTOCK_ADDRESS, else the one that
`penstock serve` noted on this machine, else the default address."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from penstock import Client, InvalidRequestError
from penstock.address import with_port
from penstock.cli.exit_codes import ExitCode
from penstock.cli.output import fail

DEFAULT_ADDRESS = "127.0.0.1:50051"
ADDRESS_VARIABLE = "PENSTOCK_ADDRESS"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNote:
    """What `penstock serve` leaves for the other commands of the same user."""

    address: str
    run_dir: str
    pid: int

    @property
    def is_alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except OSError:
            return False
        return True


def _folders() -> Iterator[Path]:
    """Directories of this user alone, the best first: any may be missing or unwritable, as after
    `su` or in a container."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "penstock"
    if home := os.environ.get("HOME"):
        yield Path(home) / ".penstock"
    try:
        yield Path(tempfile.gettempdir()) / f"penstock-{os.getuid()}"
    except OSError:
        return


def _is_private(path: Path) -> bool:
    found = path.lstat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def leave_note(note: LocalNote) -> Path:
    """Raises the first OSError where no place can be written."""
    errors = []
    for folder in _folders():
        try:
            return _write_note(folder, note)
        except OSError as error:
            errors.append(error)
    raise errors[0] if errors else FileNotFoundError("there is no directory that can be written")


def _write_note(folder: Path, note: LocalNote) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(folder):
        raise PermissionError(f"{folder} is another user's, or others may write into it")
    path, fresh = folder / "current.json", folder / f"current.{note.pid}"
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(note), file)
    fresh.replace(path)
    return path


def withdraw_note(note: LocalNote) -> None:
    """Takes the note back, unless a later cluster has left its own."""
    for folder in _folders():
        path = folder / "current.json"
        if _read_note(path) == note:
            with contextlib.suppress(OSError):  # it names a dead process, and is not believed
                path.unlink()


def find_note() -> LocalNote | None:
    """The running cluster's, or None. Another user's note is not believed."""
    notes = (_read_note(folder / "current.json") for folder in _folders())
    return next((note for note in notes if note and note.is_alive), None)


def _read_note(path: Path) -> LocalNote | None:
    try:
        if not (_is_private(path.parent) and _is_private(path)):
            return None
        return LocalNote(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def find_address(flag: str | None) -> str:
    if address := flag or os.environ.get(ADDRESS_VARIABLE):
        return usable_address(address)
    note = find_note()
    return note.address if note else DEFAULT_ADDRESS


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


def need_secrets(flag: Path | None, address: str) -> Path:
    """The secrets file of the cluster at an address, where it runs on this machine. Ends the
    command where there is none."""
    if flag:
        return flag
    note = find_note()
    if note is None or note.address != address:
        fail(
            f"No cluster is known to run at {address} on this machine: start one with 'penstock"
            " serve', or give --address and --secrets-file.",
            ExitCode.UNREACHABLE,
        )
    return Path(note.run_dir) / "secrets.yaml"
