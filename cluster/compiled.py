"""Compiles C++ for the processor it runs on, at its first use, and keeps the library for the
processes that come after: in this user's cache, by source, compiler, flags and processor.

Knows nothing of what the code does. Nothing is loaded that another user could have written.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cluster import host
from cluster.lock import lock_alone
from cluster.process import cache_folder

COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17",
    "-O2",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
)
COMPILE_S = 120.0  # more than any machine needs
MAX_KEPT = 48  # libraries: of older sources, of machines that share a home
DIGEST_BYTES = hashlib.sha256().digest_size
MAX_TOLD = 300  # characters of what a compiler says

logger = logging.getLogger(__name__)


class CompileError(Exception):
    """There is no library. Its sentence says why."""


class Compiler(NamedTuple):
    path: str
    version: str  # its first line


@cache
def library(source: Path, *defines: str) -> ctypes.CDLL:
    """Loads it once for this process, from this user's cache. *Raises* CompileError."""
    caches = cache_folder()
    return compiled(source, defines, folder=caches and caches / "compiled")


def compiled(source: Path, defines: Sequence[str] = (), *, folder: Path | None) -> ctypes.CDLL:
    """Loads the library of `source`, which may include what lies beside it; compiles it first,
    unless `folder` has it. One process compiles at a time. *Raises* CompileError."""
    compiler = find_compiler()
    flags = [*FLAGS, _native(), *(f"-D{each}" for each in defines)]
    name = f"{source.stem}-{_key(source, compiler, flags)}.so"
    with _private(folder) as place:
        kept = place / name
        with _locked(place):
            if not _is_whole(kept):
                _compile(compiler, flags, source, kept)
                _forget_oldest(place)
        try:
            return ctypes.CDLL(str(kept))
        except OSError as error:
            raise CompileError(f"what was compiled cannot be loaded: {error}") from error


def find_compiler() -> Compiler:
    """Finds a C++ compiler on the path. *Raises* CompileError."""
    path = next(filter(None, map(shutil.which, COMPILERS)), None)
    if path is None:
        raise CompileError(f"no C++ compiler on the path ({', '.join(COMPILERS)})")
    return Compiler(path, _run([path, "--version"]).partition("\n")[0])


def _native() -> str:
    return "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"


def _key(source: Path, compiler: Compiler, flags: Sequence[str]) -> str:
    """All that a library depends on."""
    digest = hashlib.sha256()
    for part in (compiler.path, compiler.version, *flags, host.instructions()):
        digest.update(part.encode() + b"\0")
    for path in sorted([source, *source.parent.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _compile(compiler: Compiler, flags: Sequence[str], source: Path, target: Path) -> None:
    """Writes the library and, behind it, its digest, which loaders do not look at."""
    fresh = target.with_suffix(f".{os.getpid()}")
    try:
        _run([compiler.path, *flags, "-o", str(fresh), str(source)])
        with fresh.open("ab") as file:
            file.write(hashlib.sha256(fresh.read_bytes()).digest())
        fresh.chmod(0o700)  # whatever the umask
        fresh.replace(target)
    except OSError as error:
        raise CompileError(f"the library cannot be written: {error}") from error
    finally:
        fresh.unlink(missing_ok=True)
    logger.info("Compiled %s for this processor: %s", source.name, target)


def _is_whole(path: Path) -> bool:
    """Tells whether it is there as this user wrote it: one that was cut short, by a full disk or a
    machine that stopped, would end the process that loads it."""
    if not _is_own(path):
        return False
    content = path.read_bytes()
    digest = hashlib.sha256(content[:-DIGEST_BYTES]).digest()
    return digest == content[-DIGEST_BYTES:]


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=COMPILE_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        raise CompileError(f"{command[0]} fails: {done.stderr.strip()[:MAX_TOLD]}")
    return done.stdout


@contextlib.contextmanager
def _private(folder: Path | None) -> Iterator[Path]:
    """Gives a folder that nobody else can write to: this one, made where it is missing, or where
    that is not to be had, one that lasts as long as it is needed."""
    if folder is not None:
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_private(folder):
            yield folder
            return
        logger.info("%s is not this user's alone: what is compiled is not kept", folder)
    with tempfile.TemporaryDirectory(prefix="penstock-") as scratch:
        yield Path(scratch)


def _is_private(folder: Path) -> bool:
    return _is_own(folder) and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _is_own(path: Path) -> bool:
    """Tells whether it is there and nobody else could have written it."""
    try:
        found = path.stat(follow_symlinks=False)
    except OSError:
        return False
    is_link = stat.S_ISLNK(found.st_mode)
    return not is_link and found.st_uid == os.geteuid() and not found.st_mode & 0o022


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        held = lock_alone(folder / "lock")
    except OSError:  # a file system without locks: then two may compile, and rename
        yield
        return
    try:
        yield
    finally:
        os.close(held)


def _forget_oldest(folder: Path) -> None:
    with contextlib.suppress(OSError):
        newest = sorted(folder.glob("*.so"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in newest[MAX_KEPT:]:
            path.unlink()
