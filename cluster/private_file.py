"""Files that only their owner reads: secrets, and the hashes of callers' keys. Knows no content."""

import os
import stat
import tempfile
from pathlib import Path

from cluster.errors import ConfigError


def read_private(path: Path, what: str, max_bytes: int) -> bytes:
    """Reads a file of at most so many bytes. `what` it is, as sentences call it: "secrets file".
    Raises ConfigError unless it is its owner's alone."""
    try:
        with path.open("rb") as file:
            _check_private(path, what, os.fstat(file.fileno()))
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    if len(content) > max_bytes:
        raise ConfigError(f"The {what} {path} has more than {max_bytes} bytes.")
    return content


def write_private(path: Path, content: bytes) -> None:
    """Makes a file with mode 0600. Raises FileExistsError, and OSError where none can be made."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def replace_private(path: Path, content: bytes) -> None:
    """Puts another content in its place, at once and for good: whoever reads meanwhile finds the
    old one or the new one, whole. Raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _check_private(path: Path, what: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"The {what} {path} is not a regular file.")
    if status.st_mode & 0o077:
        raise ConfigError(
            f"The {what} {path} has mode {stat.S_IMODE(status.st_mode):04o}: others can read "
            f"or change it. Run: chmod 600 {path}"
        )
