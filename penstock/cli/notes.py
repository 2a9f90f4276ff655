"""Notes what a running cluster leaves for the other commands of its user: one note a cluster,
locked while whoever left it lives. What is left without a lock is swept by whoever reads next."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cluster.addresses import Endpoint
from cluster.errors import ConfigError
from cluster.host import machine
from cluster.lock import is_locked, lock
from deploy.run_dir import SECRETS

FOLDER = "clusters"
MAX_BYTES = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNote:
    """One cluster of this machine."""

    address: str  # that commands here dial
    run_dir: str
    pid: int  # of `serve`
    internal: str = ""  # that commands of operators dial; empty: the same
    certificate: str = ""  # the file that clients are shown; empty: no TLS is spoken
    listens: str = ""  # where the router was told to; empty: at its address
    log_dir: str = ""
    model: str = ""
    name: str = ""  # of the cluster, as its file says
    machine: str = ""

    @property
    def secrets_file(self) -> Path:
        return Path(self.run_dir) / SECRETS

    def is_at(self, address: str) -> bool:
        """Tells whether who dials this address reaches it, however the address is written."""
        if address in (self.address, self.internal):
            return True
        try:
            return Endpoint.parse(self.listens or self.address).is_reached_by(
                Endpoint.parse(address)
            )
        except ConfigError:
            return False


def this_machine() -> str:
    """Names this machine until it boots anew, or a container of it: where addresses and pids mean
    the same."""
    return f"{machine()} {os.readlink('/proc/self/ns/pid')}"


@contextmanager
def noted(note: LocalNote) -> Iterator[None]:
    """Leaves a note until the block ends. Raises OSError where no place can be written.

    It lies in every place of the user's that has one: who reads may know of one alone, as a job
    of cron's does, or whoever has come by `su`.
    """
    with contextlib.ExitStack() as left:
        errors = []
        for place in _homes():
            try:
                left.enter_context(_left(place, note))
            except OSError as error:
                errors.append(error)
        if len(errors) == len(list(_homes())):
            left.enter_context(_left(_temporary(), note))
        yield


def running() -> list[LocalNote]:
    """The clusters of this user that run here, by address. Others' notes are not believed."""
    found: dict[str, LocalNote] = {}
    for folder in _places():
        with contextlib.suppress(OSError):
            found |= {note.run_dir: note for note in _living(folder)}
    return sorted(found.values(), key=lambda note: note.address)


def _homes() -> Iterator[Path]:
    """Directories of this user alone: any may be missing, unwritable or of another machine."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "penstock" / FOLDER
    if home := os.environ.get("HOME"):
        yield Path(home) / ".penstock" / FOLDER


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"penstock-{os.getuid()}" / FOLDER


def _places() -> Iterator[Path]:
    yield from _homes()
    with contextlib.suppress(OSError):
        yield _temporary()


def _is_private(path: Path) -> bool:
    found = path.lstat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


@contextmanager
def _left(folder: Path, note: LocalNote) -> Iterator[None]:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if not (_is_private(folder.parent) and _is_private(folder)):
        raise PermissionError(f"{folder} is another user's, or others may write into it")
    path = folder / f"{Path(note.run_dir).name}.json"
    fresh = path.with_suffix(f".{os.getpid()}")
    held = lock(fresh)  # before it has its name: nobody sees it unlocked
    if held is None:
        raise FileExistsError(f"{fresh} is another process's")
    try:
        os.write(held, json.dumps(asdict(note)).encode())
        fresh.replace(path)
        yield
    finally:
        with contextlib.suppress(OSError):  # without its lock it is not believed
            path.unlink()
        with contextlib.suppress(OSError):
            fresh.unlink()
        os.close(held)


def _living(folder: Path) -> Iterator[LocalNote]:
    if not (_is_private(folder.parent) and _is_private(folder)):
        return
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(
            OSError, ValueError, TypeError, AttributeError
        ):  # gone meanwhile, or no note
            note = _read(path)
            if note is not None and note.machine == this_machine():
                yield note


def _read(path: Path) -> LocalNote | None:
    """None where it is another's, or nobody holds it any more: then it is swept."""
    if not _is_private(path):
        return None
    if not is_locked(path):
        path.unlink(missing_ok=True)
        return None
    said = json.loads(path.read_bytes()[:MAX_BYTES])
    known = {each.name for each in fields(LocalNote)}  # a newer version's note says more
    return LocalNote(**{key: said[key] for key in known & said.keys()})
