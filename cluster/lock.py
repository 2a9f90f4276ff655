"""A file that is locked as long as whoever holds it lives: the kernel lets go when it dies."""

import contextlib
import fcntl
import os
from pathlib import Path


def lock(path: Path) -> int | None:
    """The locked file, or None while another process holds it. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def lock_shared(path: Path) -> int | None:
    """The file, held beside others that share it; None where it was taken away meanwhile: whoever
    comes next would lock another. Waits for who has it alone, which is for a moment only. Raises
    OSError."""
    try:
        descriptor = _waited_for(path, fcntl.LOCK_SH)
    except FileNotFoundError:  # with its directory
        return None
    if _is_named(path, descriptor):
        return descriptor
    os.close(descriptor)
    return None


def lock_alone(path: Path) -> int:
    """The locked file, as soon as nobody else holds it, however long that takes. Raises OSError."""
    return _waited_for(path, fcntl.LOCK_EX)


def _waited_for(path: Path, how: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_named(path: Path, descriptor: int) -> bool:
    """Tells whether the open file is the one that has the name."""
    with contextlib.suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def is_locked(path: Path) -> bool:
    """False where there is no such file. Who asks is in nobody's way."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
