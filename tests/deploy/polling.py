"""For tests that look at what other processes do, which tells nobody."""

import time
from collections.abc import Callable

import psutil


def until(condition: Callable[[], bool], what: str, *, within_s: float = 30.0) -> None:
    """Returns once it holds. Fails, naming what was waited for, when it does not in time."""
    ends_at = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends_at, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether it runs: who has ended and is not yet waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it may go between two looks
        return False
