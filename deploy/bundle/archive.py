"""A bundle as one file, for its owner alone. Nothing is written in which a secret is found."""

import io
import os
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cluster.errors import ConfigError
from deploy.bundle.known_secrets import KnownSecrets


class Leak(NamedTuple):
    """A secret that is where it does not belong."""

    secret: str  # its name
    member: str


def write_archive(path: Path, members: Mapping[str, bytes], secrets: KnownSecrets) -> Leak | None:
    """Returns what keeps it from being written, if anything does. Raises ConfigError where it
    exists or cannot be written."""
    for name, data in members.items():
        if found := secrets.found_in(name.encode() + b"\n" + data):
            return Leak(found, name)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}: give another -o."
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            for name, data in members.items():
                tar.addfile(_info(f"{_stem(path)}/{name}", len(data)), io.BytesIO(data))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error
    return None


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")


def _info(name: str, num_bytes: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = num_bytes, 0o600, int(time.time())
    return info
