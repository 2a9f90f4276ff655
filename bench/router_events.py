"""How fast a router follows caches: from the bytes of a watch to entries of its index."""

import secrets
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from cluster.block_hash import split_hashes
from cluster.events import EventLog
from cluster.types import CacheChange, Incarnation, WorkerId
from cluster.watch import UNKNOWN, catch_up
from penstock.v1 import worker_pb2
from router.index import PrefixIndex
from router.pool import Pool
from router.watcher import Watcher

NUM_GRAINS = 500_000
CHANGE_GRAINS = 32
CACHED_CHANGES = 1000
LIFE = Incarnation("life")


def events_per_s(clock: Callable[[], float]) -> float:
    """Grains stored and evicted a second, by a worker whose cache is full."""
    log = EventLog(LIFE)
    watcher = _watcher()
    empty, number = _messages(log, UNKNOWN)
    _take(watcher, empty, clock)
    cached = [_change() for _ in range(CACHED_CHANGES)]
    seconds = 0.0
    num_changes = NUM_GRAINS // (2 * CHANGE_GRAINS)
    for start in range(0, num_changes, 1000):
        for _ in range(min(1000, num_changes - start)):
            stored = _change()
            cached.append(stored)
            log.append(CacheChange(stored=stored, evicted=cached.pop(0)))
        messages, number = _messages(log, number)
        seconds += _take(watcher, messages, clock)
    return NUM_GRAINS / seconds


def snapshot_per_s(clock: Callable[[], float]) -> float:
    log = EventLog(LIFE)
    log.append(CacheChange(stored=split_hashes(secrets.token_bytes(16 * NUM_GRAINS))))
    messages, _ = _messages(log, UNKNOWN)
    return NUM_GRAINS / _take(_watcher(), messages, clock)


def _watcher() -> Watcher:
    link: Any = SimpleNamespace(worker=SimpleNamespace(worker_id=WorkerId("w"), incarnation=LIFE))
    return Watcher(link, PrefixIndex(256 << 20), Pool(), lambda: 0.0)


def _messages(log: EventLog, number: int) -> tuple[list[bytes], int]:
    """All that is to be told after this change, and the number of the last one."""
    messages = []
    while number != log.number:
        more, number = catch_up(log, number)
        messages += [message.SerializeToString() for message in more]
    return messages, number


def _take(watcher: Watcher, messages: list[bytes], clock: Callable[[], float]) -> float:
    began = clock()
    for message in messages:
        assert watcher.take(worker_pb2.WatchResponse.FromString(message))
    return clock() - began


def _change() -> Any:
    return split_hashes(secrets.token_bytes(16 * CHANGE_GRAINS))
