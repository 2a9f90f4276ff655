"""Which lives of a cluster's processes there are on machines, and what of them lies there."""

import json
import re
from collections.abc import Iterable
from typing import Any

import psutil

from tests.machines.network import Machine
from tests.machines.watch import OURS

CONFIG = re.compile(r"/dev/shm/penstock-[\w.-]+/([\w-]+)\.yaml")


def living(machines: Iterable[Machine]) -> dict[str, list[str]]:
    """By the name of each process that runs somewhere: on which machines, once for each."""
    found: dict[str, list[str]] = {}
    for machine in machines:
        for process in machine.processes():
            try:
                command = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            if OURS.search(command) and (config := CONFIG.search(command)):
                found.setdefault(config[1], []).append(machine.name)
    return found


def pools(machines: Iterable[Machine]) -> list[str]:
    """The files of KV that lie on them, each by the incarnation whose it is."""
    paths = [path for machine in machines for path in machine.files()]
    return sorted(path.rpartition("/kv-")[2] for path in paths if "/kv-" in path)


def incarnations(status: dict[str, Any]) -> list[str]:
    """Of the workers that serve."""
    serving = [each["member"] for each in status["workers"] if each.get("serving")]
    return sorted(each["worker"]["incarnation"] for each in serving)


def blocks_held(status: dict[str, Any]) -> dict[str, Any]:
    """By worker, what of its pool is not free; where nobody asks for anything it is to be empty."""
    held = {}
    for each in status["workers"]:
        load = each["load"]
        quarantined = load.get("num_quarantined_blocks", 0)
        if load.get("num_free_blocks", 0) != load["num_blocks"] or quarantined:
            held[each["member"]["worker"]["worker_id"]] = json.dumps(load)[:300]
    return held
