"""Answers what is asked on one machine of many, in a short-lived process there: whether a cluster's
processes could start, what they wrote, and to take away what is left of them. Starts nothing."""

import contextlib
import os
import platform
import shutil
import socket
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from cluster.errors import ConfigError
from cluster.host import DISTRIBUTIONS, listening
from cluster.secrets import load_secrets
from deploy.log_dir import placed_log_root
from deploy.log_pieces import Piece, PiecesAsked, pieces
from deploy.run_dir import LOGS, clear, shared_path
from penstock import __version__

PARTS: Final = (*DISTRIBUTIONS, "hiredis", "ray", "redis", "tokenizers", "transformers", "uvloop")
STORE_S: Final = 2.0  # to reach it
REDIS_PORT: Final = 6379
_RAYS_OWN: Final = "-packages/ray/"  # where it is installed


class Needs(NamedTuple):
    """Lists what every machine has that runs a part of the cluster."""

    version: str
    secrets_file: str
    store: str
    paths: tuple[str, ...]  # to read
    pool_bytes: int = 0  # of the largest KV pool that is to be made


def missing(needs: Needs) -> list[str]:
    """Sentences that go on after the machine's name."""
    return list(_missing(needs))


def _missing(needs: Needs) -> Iterator[str]:
    if needs.version != __version__:
        yield (
            f"has Penstock {__version__}, and this one is {needs.version}: install the same"
            " everywhere."
        )
    try:
        load_secrets(Path(needs.secrets_file))
    except ConfigError as error:
        yield f"cannot use 'secretsFile': {error.message}"
    for path in needs.paths:
        if not os.access(path, os.R_OK):
            yield f"has no {path}, or may not read it: put it there."
    folder = shared_path("").parent
    if (free := shutil.disk_usage(folder).free) < needs.pool_bytes:
        yield (
            f"has {free / 2**20:.0f} MiB free in {folder}, and a KV pool takes"
            f" {needs.pool_bytes / 2**20:.0f}: free some, or give less as 'kvPool'."
        )
    if (why := _unreached(needs.store)) is not None:
        yield f"does not reach the store at {_without_user(needs.store)}: {why}."


def _unreached(store: str) -> str | None:
    url = urlsplit(store)
    try:
        socket.create_connection((url.hostname, url.port or REDIS_PORT), STORE_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _without_user(store: str) -> str:
    url = urlsplit(store)
    return f"{url.hostname}:{url.port or REDIS_PORT}"


def clear_machine(directory: str) -> bool:
    """Ends what is left of a cluster here; False: somebody holds it."""
    return clear(shared_path(directory))


def logs(directory: str, asked: PiecesAsked) -> list[Piece]:
    """Reads logs of a cluster here, also after its end."""
    folders = [shared_path(directory) / LOGS]  # where no other place could be written
    with contextlib.suppress(OSError):
        folders.insert(0, placed_log_root() / directory)
    return [piece for folder in folders if folder.is_dir() for piece in pieces(folder, asked)]


def versions() -> dict[str, str]:
    """Lists the versions of all that an answer depends on; what is not installed is left out."""
    found = {"python": platform.python_version(), "kernel": platform.release()}
    for part in PARTS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[part] = metadata.version(part)
    return {**found, "processor": platform.machine(), "system": _system()}


def _system() -> str:
    with contextlib.suppress(OSError, KeyError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return platform.system()


class Listener(NamedTuple):
    """A process that takes connections."""

    name: str
    pid: int
    sockets: tuple[str, ...]


def placers() -> list[Listener]:
    """The processes of Ray here that listen, as far as they are this user's; without this one,
    which goes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        if folder.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):  # it is gone, or another user's
            name = ray_name((folder / "cmdline").read_bytes().decode(errors="replace").split("\0"))
            if name and (sockets := listening(int(folder.name))):
                found.append(Listener(name, int(folder.name), sockets))
    return sorted(found)


def ray_name(command: Sequence[str]) -> str:
    """Names a process of Ray's; empty: it is none of them."""
    program = command[0].strip()
    if program.startswith("ray::"):
        return program.split()[0]
    for word in command[:4]:  # python, its flags, what it runs
        if _RAYS_OWN in word:
            return "/".join(Path(word).parts[-2:])
    return ""
