"""The machine that figures were taken on, in words."""

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def last_level_cache_bytes() -> int:
    """0 where the machine does not say."""
    try:
        sizes = [int(path.read_text().rstrip("K\n")) for path in CACHES.glob("index*/size")]
    except (OSError, ValueError):
        return 0
    return max(sizes, default=0) * 1024


def describe() -> str:
    memory, cache = psutil.virtual_memory().total, last_level_cache_bytes()
    return (
        f"{os.cpu_count()} cores ({_cpu_name()}, {_vectors()}), {cache / 2**20:.0f} MiB last-level"
        f" cache, {memory / 2**30:.0f} GiB, Linux {platform.release().split('-')[0]},"
        f" Python {platform.python_version()}, {time.strftime('%Y-%m-%d')};"
        f" load before the run {os.getloadavg()[0]:.1f}"
    )


def _cpu_info(key: str) -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    found = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() == key), "")


def _cpu_name() -> str:
    return _cpu_info("model name") or platform.machine()


def _vectors() -> str:
    flags = _cpu_info("flags").split()
    return next((name for name in ("avx512f", "avx2", "neon") if name in flags), "no AVX")


class Others:
    """What processes that are not ours take of the machine, from its making on."""

    def __init__(self, pids: Iterable[int]) -> None:
        """`pids`: ours."""
        self._processes = [psutil.Process(pid) for pid in pids]
        self._began = self._now()

    @property
    def share(self) -> float:
        """Of all cores' time."""
        total_s, busy_s, own_s = (
            now - before for now, before in zip(self._now(), self._began, strict=True)
        )
        return max(0.0, busy_s - own_s) / max(1e-9, total_s)

    def _now(self) -> tuple[float, float, float]:
        """Seconds: of all cores, busy, busy with ours."""
        times = psutil.cpu_times()
        total_s = sum(times[:8])  # guests' are counted twice
        own_s = sum(sum(process.cpu_times()[:2]) for process in self._processes)
        return total_s, total_s - times.idle - times.iowait, own_s
