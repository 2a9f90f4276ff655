"""The command `ray` for machines that are all one busy machine. Ray gives its agents 15 s to start
and itself 30 s, and asks without pause whether it is over. So this lets one machine start Ray at a
time, the head's dashboard before the agents, those small, waits longer, asks now and then, and
tries again. PATIENT_RAY_LOCK: a file that all see."""

import fcntl
import os
import socket
import sys
import time
from contextlib import suppress
from typing import Any

import psutil
from ray._private import services, utils
from ray.scripts.scripts import main

START_S, PAUSE_S = 150.0, 0.5
MODULE = (sys.executable, "-m", "tests.machines.patient_ray")
DASHBOARD = ("127.0.0.1", 8265)
ask, start_raylet = services.get_node, services.start_raylet


def ask_patiently(*arguments: Any) -> Any:
    ends_at = time.monotonic() + START_S
    while time.monotonic() < ends_at:
        try:
            return ask(*arguments)
        except RuntimeError:  # it has not registered yet
            if raylet_has_ended():
                begin_again()
            time.sleep(PAUSE_S)
    return ask(*arguments)


def start_alone(*arguments: Any, **named: Any) -> Any:
    ends_at = time.monotonic() + START_S
    while "--head" in sys.argv and time.monotonic() < ends_at:
        with suppress(OSError):
            socket.create_connection(DASHBOARD, PAUSE_S).close()
            break
        time.sleep(PAUSE_S)
    utils.get_dashboard_dependency_error = lambda: ImportError("not wanted here")
    return start_raylet(*arguments, **named)


def raylet_has_ended() -> bool:
    ended = psutil.STATUS_ZOMBIE
    children = psutil.Process().children()
    return any(each.name() == "raylet" and each.status() == ended for each in children)


def begin_again() -> None:
    print("Ray's agents were too slow: again.", file=sys.stderr, flush=True)
    for each in psutil.Process().children(recursive=True):
        each.kill()
    os.execv(sys.executable, [*MODULE, *sys.argv[1:]])


if __name__ == "__main__":
    services.get_node, services.start_raylet = ask_patiently, start_alone
    if sys.argv[1] == "start":
        lock = os.open(os.environ["PATIENT_RAY_LOCK"], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends
    main()
