"""Reads what this process can of its machine, without any right beyond its own."""

import contextlib
import functools
import os
import platform
import resource
import time
from collections.abc import Iterator
from importlib import metadata
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from cluster.facts import Folder

DISTRIBUTIONS = ("penstock", "grpcio", "protobuf", "numpy", "torch", "xxhash", "nixl")
_LISTEN = "0A"  # the state, as /proc/net/tcp writes it
_COPY_BYTES = 32 << 20  # source and destination together exceed a usual cache
_NUM_COPIES = 3


def machine() -> str:
    """Names one running machine: the name changes when it boots."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@functools.cache
def versions() -> dict[str, str]:
    return dict(_installed())


def _installed() -> Iterator[tuple[str, str]]:
    for name in DISTRIBUTIONS:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def limit(kind: int) -> int | None:
    """A soft limit of this process, RLIMIT_...; None: unlimited."""
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft


def max_connections() -> int:
    """Counts half of the files that this process may have open: for those who come in."""
    files = limit(resource.RLIMIT_NOFILE)
    return 1 << 16 if files is None else max(64, files // 2)


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def num_cpus() -> int:
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """Names what the speed of code depends on."""
    return f"{num_cpus()} {instructions()}"


@functools.cache
def instructions() -> str:
    """Names what code can be compiled for: model and instructions, as the kernel names them."""
    wanted = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = map(str.strip, line.partition(":"))
            if name in wanted:
                found.setdefault(name, value)
    return f"{platform.machine()} {found}"


def waited_s() -> float:
    """Says how long this process's threads were kept from a processor so far: by others of this
    machine, summed, or by its host. What the kernel does not count is nothing."""
    waits = 0.0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            waits += int((task / "schedstat").read_text().split()[1]) / 1e9
    with contextlib.suppress(OSError, ValueError, IndexError):
        stolen = Path("/proc/stat").read_text().partition("\n")[0].split()[8]
        waits += int(stolen) / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)
    return waits


def mode_of(path: Path) -> int | None:
    """Permission bits; None where it cannot be seen."""
    try:
        return path.stat().st_mode & 0o7777
    except OSError:
        return None


def folder(path: Path) -> Folder | None:
    """None where it cannot be seen."""
    try:
        size, mode = os.statvfs(path), path.stat().st_mode & 0o7777
    except OSError:
        return None
    return Folder(
        path=str(path),
        file_system=_file_system(path.resolve(), Path("/proc/self/mounts").read_text()),
        num_bytes=size.f_blocks * size.f_frsize,
        free_bytes=size.f_bavail * size.f_frsize,
        mode=mode,
    )


def _file_system(path: Path, mounts: str) -> str:
    """The type of the innermost mount that holds a path; the last of several in one place."""
    rows = [line.split() for line in mounts.splitlines()]
    holding = [
        (len(row[1]), i, row[2]) for i, row in enumerate(rows) if path.is_relative_to(row[1])
    ]
    return max(holding)[2] if holding else ""


def listening(pid: int | None = None) -> tuple[str, ...]:
    """A process's own TCP sockets that take connections; None: this one's. Raises OSError where it
    is another user's, or gone."""
    process = f"/proc/{pid or 'self'}"
    inodes = {_inode(f"{process}/fd/{name}") for name in os.listdir(f"{process}/fd")}
    found = set()
    for table in (f"{process}/net/tcp", f"{process}/net/tcp6"):
        if os.path.exists(table):
            found |= set(_listening_in(Path(table).read_text(), inodes))
    return tuple(sorted(found))


def _inode(path: str) -> str:
    try:
        target = os.readlink(path)
    except OSError:  # closed meanwhile
        return ""
    return target.removeprefix("socket:[").removesuffix("]") if "socket:[" in target else ""


def _listening_in(table: str, inodes: set[str]) -> Iterator[str]:
    for row in map(str.split, table.splitlines()[1:]):
        if row[3] == _LISTEN and row[9] in inodes:
            host, port = row[1].split(":")
            yield _written(_address(host), int(port, 16))


def _address(text: str) -> IPv4Address | IPv6Address:
    """The kernel writes each 32-bit word in the machine's own byte order."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    address = ip_address(b"".join(words))
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _written(address: IPv4Address | IPv6Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def memory_bytes_per_s() -> float:
    """Measures how fast one thread copies memory here: the best of a few copies, some 30 ms."""
    source, destination = b"\1" * _COPY_BYTES, memoryview(bytearray(_COPY_BYTES))
    best_s = float("inf")
    for _ in range(_NUM_COPIES):
        begin = time.perf_counter()
        destination[:] = source
        best_s = min(best_s, time.perf_counter() - begin)
    return _COPY_BYTES / best_s
