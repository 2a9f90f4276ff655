"""What can be seen of a machine from outside and in its records: who listens where and lets whom
in, and whether a secret got into what Ray keeps and tells."""

import re
from collections.abc import Iterable, Iterator

from cluster.secrets import Secrets
from tests.machines.network import Machine
from tests.written_secrets import written

LISTENING = re.compile(r"LISTEN +\d+ +\d+ +(\S+):(\d+) +\S+ +users:\(\(\"([^\"]+)\",pid=(\d+)")
# Ray's own, behind its token, by what they were started as.
RAY = re.compile(
    r"gcs_server|raylet|ray::|ray-dashboard|ray/dashboard/|runtime_env|log_monitor"
    r"|/monitor\.py|ray\.util\.client\.server|default_worker\.py"
)
OURS = re.compile(r"-m (router|prefill_worker|decode_worker)\b")
DASHBOARD = "8265"


def open_ports(machines: Iterable[Machine]) -> list[str]:
    """Those that nobody knows, and those that are open to more than they should: ours are at the
    machine's address or on loopback alone."""
    return [each for machine in machines for each in _wrong_ports(machine)]


def our_ports(machine: Machine) -> list[str]:
    """Those of a cluster's processes that other machines can dial."""
    found = [(host, port) for host, port, _, command in _listening(machine) if OURS.search(command)]
    return [f"{host}:{port}" for host, port in found if host == machine.address]


def _listening(machine: Machine) -> Iterator[tuple[str, str, str, str]]:
    """Address, port, name and command of each that does."""
    told = machine.run("ss", "-Htlnp").stdout.splitlines()
    assert told, machine.name
    for line in told:
        found = LISTENING.match(line)
        assert found, line
        host, port, name, pid = found.groups()
        command = machine.run("cat", f"/proc/{pid}/cmdline", check=False).stdout.replace("\0", " ")
        yield host.strip("[]").removeprefix("::ffff:"), port, name, command


def _wrong_ports(machine: Machine) -> Iterator[str]:
    for host, port, name, command in _listening(machine):
        if name == "sshd":
            is_right = host == machine.address
        elif OURS.search(command):
            is_right = host in (machine.address, "127.0.0.1")
        else:
            is_right = bool(RAY.search(command)) and (port != DASHBOARD or host == "127.0.0.1")
        if not is_right:
            yield f"{machine.name}: {command[:200]} at {host}:{port}"


def told_secrets(machines: Iterable[Machine], secrets: Secrets, password: str) -> list[str]:
    """Where one of them is: Ray's logs and state, environment and arguments of processes."""
    machines = list(machines)
    token = (machines[0].home / ".ray" / "auth_token").read_text().strip()
    planted = [*written(secrets), password, token]
    patterns = [part for each in planted for part in ("-e", each)]
    places = []
    for machine in machines:
        found = machine.run("grep", "-rlF", *patterns, "/tmp/ray", check=False)
        places += [f"{machine.name}: {path}" for path in found.stdout.split()]
        for process in machine.processes():
            told = " ".join([*process.cmdline(), *process.environ().values()])
            if any(each in told for each in planted):
                places.append(f"{machine.name}: {process.name()}")
    for what in ("actors", "placement-groups"):
        state = machines[0].run("bash", "-ic", f"ray list {what} --detail --format json").stdout
        assert '"state"' in state
        if any(each in state for each in planted):
            places.append(f"ray list {what}")
    return places
