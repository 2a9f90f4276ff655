"""Fills an index in a process of its own, and prints what it weighed: at the moment at which its
budget was first full, and at the most after that.

    python -m tests.router.index_memory BUDGET_MIB MILLIONS CACHED_SHARE

`CACHED_SHARE`: what each of eight workers holds before it evicts, as a share of the grains that
the budget has room for; 0: they never evict.
"""

import json
import os
import sys
from collections import deque
from pathlib import Path

from cluster.block_hash import split_hashes
from cluster.types import CacheChange, Incarnation, WorkerId
from router.index import PrefixIndex

LIFE = Incarnation("life")
NUM_WORKERS = 8
GRAINS = 64  # stored at once


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(budget_mib: int, millions: float, cached_share: float) -> dict[str, int]:
    index = PrefixIndex(budget_mib << 20)
    workers = [WorkerId(f"worker-{number}") for number in range(NUM_WORKERS)]
    num_changes = int(cached_share * index.capacity) // GRAINS
    # Full from the start, so that nothing but the index grows. Packed: the objects are its own.
    caches = [deque(os.urandom(16 * GRAINS) for _ in range(num_changes)) for _ in workers]
    for worker in workers:
        index.replace(worker, LIFE, ())
    empty, full, most = resident_bytes(), 0, 0
    for number in range(int(millions * 1e6) // GRAINS):
        worker, cache = workers[number % NUM_WORKERS], caches[number % NUM_WORKERS]
        stored, evicted = os.urandom(16 * GRAINS), b""
        if cache:
            cache.append(stored)
            evicted = cache.popleft()
        change = CacheChange(stored=split_hashes(stored), evicted=split_hashes(evicted))
        index.apply(worker, LIFE, change)
        if not full and index.num_forgotten:
            full = resident_bytes()
        if full and number % 100 == 0:
            most = max(most, resident_bytes())
    index.check()
    return {"empty": empty, "full": full, "most": most, "num_bytes": index.num_bytes}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))))
