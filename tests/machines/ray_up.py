"""`ray up` of deploy/ray/local.yaml on machines made by a test, as an operator types it."""

import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.machines.network import PATH, ROOT, Machine, Network
from tests.redis_server import redis_executable

LOCAL = ROOT / "deploy" / "ray" / "local.yaml"
VENV = ROOT / ".venv"
# Ray gives its own agent 30 s to start, too few on a busy machine.
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "RAY_agent_register_timeout_ms": "120000"}
PASSWORD = "planted-password"  # of the Redis
CERTIFICATE = ("redis.crt", "redis.key")
# As docs/operations.md has it.
NEW_CERTIFICATE = (
    *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
    *("-nodes", "-days", "3650", "-subj", "/CN=ray", "-out", "redis.crt", "-keyout", "redis.key"),
)
FILE = "local.yaml"  # at home on the laptop
ZONES = {"head": "a", "two": "a", "three": "b"}
TRIES = 2  # of 'ray up', which a busy machine may fail
PATIENT_RAY = f"""#!/bin/sh
export PATIENT_RAY_LOCK={{lock}}
exec {VENV}/bin/python -m tests.machines.patient_ray "$@"
"""


@dataclass
class RayMachines:
    """A head, two workers, and a laptop from which they are ruled."""

    laptop: Machine
    machines: list[Machine]
    seconds: dict[str, float] = field(default_factory=dict)

    def step(
        self, name: str, *command: str, timeout_s: float = 120, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A command on the laptop, timed."""
        began = time.monotonic()
        ended = self.laptop.run(*command, timeout_s=timeout_s, check=check)
        self.seconds[name] = self.seconds.get(name, 0) + time.monotonic() - began
        return ended

    def on_head(self, command: str, name: str, *, check: bool = True) -> str:
        return self.step(name, "ray", "exec", FILE, command, check=check).stdout

    def up(self) -> None:
        """Until Ray has all machines."""
        for attempt in range(TRIES):
            last = attempt == TRIES - 1
            command = ("ray", "up", "--yes", "--no-config-cache", FILE)
            if not self.step("ray up", *command, timeout_s=500, check=last).returncode:
                break
        began = time.monotonic()
        while self.alive() < len(self.machines):
            if time.monotonic() - began > 400:
                logs = "tail -n 40 /tmp/ray/session_latest/logs/monitor.*"
                raise AssertionError(self.machines[0].run("bash", "-c", logs, check=False).stdout)
        self.seconds["all machines"] = time.monotonic() - began

    def alive(self) -> int:
        """How many machines Ray has."""
        told = self.machines[0].run("bash", "-ic", "ray status", check=False).stdout
        found = re.search(r"^ (\d+) local\.cluster\.node$", told, re.MULTILINE)
        return int(found[1]) if found else 0

    def down(self) -> None:
        self.on_head("ray_stop_everywhere", "ray stop everywhere")
        self.step("ray down", "ray", "down", "--yes", FILE)


def start_redis(network: Network) -> Machine:
    """Two, on a machine of their own, which it returns: Penstock's, and that of Ray's head."""
    machine = network.add("store", environment=ENVIRONMENT)
    machine.run(*NEW_CERTIFICATE)
    _start_redis(
        machine, "penstock", f"port 6379\nrequirepass {PASSWORD}\nsave ''\nappendonly no\n"
    )
    _start_redis(
        machine,
        "ray",
        "port 0\ntls-port 6380\nprotected-mode no\nappendonly yes\n"
        "tls-cert-file redis.crt\ntls-key-file redis.key\ntls-ca-cert-file redis.crt\n",
    )
    for port in (6379, 6380):
        dial = f"until (: 3<>/dev/tcp/{machine.address}/{port}) 2>/dev/null; do sleep 0.05; done"
        machine.run("bash", "-c", dial, timeout_s=20)
    return machine


def _start_redis(machine: Machine, name: str, settings: str) -> None:
    config = machine.home / f"{name}.conf"
    config.write_text(f"bind {machine.address}\n{settings}")
    machine.start(redis_executable(), str(config), log=machine.directory / f"{name}.log")


def ray_machines(
    network: Network,
    cluster: str,
    secrets: str,
    store: Machine,
    zones: Mapping[str, str] = ZONES,
) -> RayMachines:
    """Made and described, not yet up. `zones`: by the machine's name, the head first."""
    machines = [
        network.add(name, environment={**ENVIRONMENT, "ZONE": zone}) for name, zone in zones.items()
    ]
    path = f"{network.home}/bin:{VENV / 'bin'}:{PATH}"
    environment = {**ENVIRONMENT, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    laptop = network.add("laptop", environment=environment)
    for machine in (*machines, laptop):
        _put_ray(machine, network.directory / "ray.lock")
    (laptop.home / "penstock").mkdir(mode=0o700)
    (laptop.home / "penstock" / "cluster.yaml").write_text(cluster)
    (laptop.home / "penstock" / "secrets.yaml").write_text(secrets)
    (laptop.home / "penstock" / "secrets.yaml").chmod(0o600)
    (laptop.home / ".ray").mkdir(mode=0o700)
    for name in CERTIFICATE:
        shutil.copy(store.home / name, laptop.home / ".ray")
    (laptop.home / FILE).write_text(filled_in(LOCAL.read_text(), machines, store, network.key))
    made = RayMachines(laptop, machines)
    made.step("token", "ray", "get-auth-token", "--generate")
    return made


def _put_ray(machine: Machine, lock: Path) -> None:
    command = machine.home / "bin" / "ray"
    command.parent.mkdir()
    command.write_text(PATIENT_RAY.format(lock=lock))
    command.chmod(0o755)


def filled_in(text: str, machines: list[Machine], store: Machine, key: Path) -> str:
    """With what an operator has to put in: addresses, user, key, zones, where Penstock is."""
    head, *workers = [machine.address for machine in machines]
    for there, here in (
        ("10.0.0.1", head),
        ("10.0.0.4", store.address),
        ("[10.0.0.2, 10.0.0.3]", f"[{', '.join(workers)}]"),
        ("10.0.0.2 10.0.0.3", " ".join(workers)),
        ("host=$(hostname)", "host=$(hostname),zone=$ZONE"),
        ("/srv/penstock/.venv/bin", f"$HOME/bin:{VENV / 'bin'}"),
        ("ssh_user: ubuntu", "ssh_user: root"),
        ("~/.ssh/id_ed25519", str(key)),
    ):
        assert there in text
        text = text.replace(there, here)
    return text


# What Ray leaves on purpose (its logs, and the description that it was given), what a shell needs,
# what Penstock has measured of a machine, for its next start there, and the logs of its processes.
KEPT = re.compile(
    r"/tmp/(ray|pymp-\w+)/.*|.*/home/(\.ray|penstock|\.ssh|\.cache/penstock)/.*"
    r"|.*/home/\.local/state/penstock/placed-logs/.*"
    r"|.*/home/(bin/ray|ray_bootstrap_.*|\.bashrc|\.penstock_shell|\.bash_history)"
)


def left_on(machine: Machine) -> list[str]:
    return [path for path in machine.files() if not KEPT.fullmatch(path)]
