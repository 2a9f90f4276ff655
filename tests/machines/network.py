"""Machines made of namespaces: each has its own processes, network, hostname, /tmp, /run, /dev/shm
and home, and an sshd where it is installed. Files elsewhere are this machine's.

They hang on a bridge in a network namespace of its own, so nothing reaches this machine's network,
and they end with the process that made them, whatever happens to it.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SUBNET = "10.99.0"
SWITCH_ADDRESS = f"{SUBNET}.254"
BRIDGE = "bridge"
# Ends with the thread that starts it, and takes its namespaces' processes along.
UNSHARE = ("setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child", "--mount-proc")
UNSHARE += ("--pid", "--mount", "--net", "--uts", "--ipc")
TOOLS = {
    "ip": "iproute2",
    "sshd": "openssh-server",
    "rsync": "rsync",
    "redis-server": "redis-server",
}
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PYTHON = [Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)]

# The first process of a machine. What of this machine's /tmp is needed stays visible.
BOOT = """
set -e
hostname "$NAME"
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
count=0
for path; do count=$((count + 1)); mkdir /run/kept$count; mount --bind "$path" /run/kept$count; done
mount -t tmpfs -o mode=1777 tmpfs /tmp
count=0
for path; do
  count=$((count + 1))
  case "$path" in /tmp/*) mkdir -p "$path"; mount --bind /run/kept$count "$path";; esac
  umount /run/kept$count
  rmdir /run/kept$count
done
mount -t tmpfs -o mode=1777,size="$MEMORY" tmpfs /dev/shm
mount --bind "$FILES/../home" "$HOME"
for file in passwd hosts resolv.conf; do mount --bind "$FILES/$file" /etc/$file; done
echo made
read -r _  # until its network is there
exec "$SSHD" -D -E "$FILES/../sshd.log" -f "$FILES/sshd_config"
"""


def missing() -> str | None:
    """Says what keeps machines from being made here; None: nothing."""
    lacking = [package for tool, package in TOOLS.items() if not shutil.which(tool, path=PATH)]
    if lacking:
        return f"Machines cannot be made here: install {' '.join(lacking)}."
    tried = subprocess.run(
        [*UNSHARE, "true"],
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        return f"Machines cannot be made here: namespaces are forbidden ({tried.stderr.strip()})."
    return None


@dataclass(eq=False)
class Machine:
    """One of them. `pid` is that of its first process, as seen from here."""

    name: str
    address: str
    directory: Path  # of what it has and this machine sees: home, configuration, log
    environment: dict[str, str]
    memory: str
    port: str  # of the switch
    in_switch: tuple[str, ...]
    pid: int = 0
    namespace: str = ""  # of its processes; outlives the machine
    booted: subprocess.Popen[str] | None = None
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """As it is seen from here; there it has the same path on every machine."""
        return self.directory / "home"

    def command(self, *arguments: str) -> list[str]:
        """What runs that command there."""
        enter = ("nsenter", "--target", str(self.pid), "--mount", "--uts", "--ipc", "--net")
        return [*enter, "--pid", f"--wdns={self.environment['HOME']}", "--", *arguments]

    def run(
        self, *arguments: str, timeout_s: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command there as a person does who is logged in."""
        ended = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if check and ended.returncode:
            raise AssertionError(
                f"{self.name}: {shlex.join(arguments)} ended with {ended.returncode}:\n"
                f"{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
            )
        return ended

    def start(self, *arguments: str, log: Path) -> subprocess.Popen[str]:
        """Starts a command there; it ends with the machine or with this process."""
        with log.open("w") as out:
            started = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self.command(*arguments)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.started.append(started)
        return started

    def processes(self) -> list[psutil.Process]:
        """What runs there, but for sshd and those that sshd started for a login."""
        found = []
        for process in psutil.process_iter():
            try:
                there = os.readlink(f"/proc/{process.pid}/ns/pid") == self.namespace
                if there and process.name() not in ("sshd", "nsenter"):
                    found.append(process)
            except (OSError, psutil.NoSuchProcess):
                continue
        return found

    def files(self) -> set[str]:
        """What lies in its memory, in /tmp, in /run and at home."""
        places = ("/dev/shm", "/tmp", "/run", self.environment["HOME"])
        listed = self.run("find", *places, "-xdev", "-not", "-type", "d")
        return set(listed.stdout.split())

    def power_on(self) -> None:
        """Boots it, again if it was lost: of what it had, its home is left. It is there, with its
        sshd, when this returns."""
        boot = _unshared(
            *("bash", "-c", BOOT, "boot"),
            *(str(path) for path in (self.directory.parent, ROOT, *PYTHON)),
            environment={
                **self.environment,
                "NAME": self.name,
                "FILES": str(self.directory / "etc"),
                "MEMORY": self.memory,
                "SSHD": shutil.which("sshd", path=PATH) or "sshd",
            },
        )
        self.booted, self.pid = boot, _first_process(boot)
        self.namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        _expect(boot, "made")
        self._plug_in()
        _say(boot, "go")
        dial = f"until (: 3<>/dev/tcp/{self.address}/22) 2>/dev/null; do sleep 0.02; done"
        self.run("bash", "-c", dial, timeout_s=20)

    def _plug_in(self) -> None:
        peer = ("peer", "name", "eth0", "netns", str(self.pid))
        _run(*self.in_switch, "link", "add", self.port, "type", "veth", *peer)
        _run(*self.in_switch, "link", "set", self.port, "master", BRIDGE, "up")
        for command in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            # Nothing is behind it; with a route a machine knows which address is its own.
            ("route", "add", "default", "via", SWITCH_ADDRESS),
        ):
            self.run("ip", *command)

    def lose(self) -> None:
        """Ends the machine, as when its power fails."""
        assert self.booted is not None
        os.kill(self.pid, signal.SIGKILL)
        self.booted.communicate(timeout=10)
        self.booted = None

    def cut_off(self) -> None:
        """From all others, from now on and both ways; nobody is told, it neither."""
        _run(*self.in_switch, "link", "set", self.port, "nomaster")

    def heal(self) -> None:
        _run(*self.in_switch, "link", "set", self.port, "master", BRIDGE)


class Network:
    """The bridge, and the machines that hang on it. `authorized_key` may log in at each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.home = directory / "home"  # on every machine its own
        self.home.mkdir()
        self.machines: list[Machine] = []
        self._switch = _unshared("cat")
        switch = _first_process(self._switch)
        self._in_switch = ("nsenter", "--target", str(switch), "--net", "ip")
        _run(*self._in_switch, "link", "add", BRIDGE, "type", "bridge")
        _run(*self._in_switch, "address", "add", f"{SWITCH_ADDRESS}/24", "dev", BRIDGE)
        _run(*self._in_switch, "link", "set", BRIDGE, "up")
        self.key = directory / "key"
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(self.key))

    def add(self, name: str, *, memory: str = "2g", environment: dict[str, str]) -> Machine:
        """Starts a machine: it is there, with its sshd, when this returns."""
        number = len(self.machines) + 1
        address = f"{SUBNET}.{number}"
        directory = self.directory / name
        environment = {"PATH": PATH, "LANG": "C.UTF-8", **environment, "HOME": str(self.home)}
        self._write_files(directory, name, address, environment)
        machine = Machine(
            name, address, directory, environment, memory, f"port{number}", self._in_switch
        )
        self.machines.append(machine)
        machine.power_on()
        return machine

    def end(self) -> None:
        """Ends all that runs on them, and them."""
        booted = [machine.booted for machine in self.machines if machine.booted]
        for process in [*booted, self._switch]:
            process.kill()  # --kill-child: the first process of the namespace goes, so all do
            process.communicate()
        for machine in self.machines:
            for started in machine.started:
                started.wait(timeout=10)

    def _write_files(
        self, directory: Path, name: str, address: str, environment: dict[str, str]
    ) -> None:
        etc = directory / "etc"
        etc.mkdir(parents=True)
        (directory / "home").mkdir(mode=0o700)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(etc / "host_key"))
        (etc / "passwd").write_text(
            f"root:x:0:0:root:{self.home}:/bin/bash\n"
            "sshd:x:102:65534::/run/sshd:/usr/sbin/nologin\n"
        )
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{address} {name}\n")
        (etc / "resolv.conf").write_text("")  # nobody outside is asked
        quoted = " ".join(f'"{key}={value}"' for key, value in environment.items() if key != "HOME")
        (etc / "sshd_config").write_text(
            f"ListenAddress {address}:22\nHostKey {etc / 'host_key'}\nPidFile none\n"
            f"AuthorizedKeysFile {self.key}.pub\nStrictModes no\nPermitRootLogin yes\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nUseDNS no\n"
            "MaxStartups 100\nMaxSessions 100\nPrintMotd no\nPrintLastLog no\n"
            f"SetEnv {quoted}\n"
        )


@contextmanager
def network(directory: Path) -> Iterator[Network]:
    """An empty one; all of it ends with the block."""
    made = Network(directory)
    try:
        yield made
    finally:
        made.end()


def _unshared(*command: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*UNSHARE, *command],
        env=environment or {"PATH": PATH},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _first_process(unshare: subprocess.Popen[str]) -> int:
    """The child of `unshare`, which is process 1 of its namespace."""
    parent = psutil.Process(unshare.pid)
    while unshare.poll() is None:
        if children := parent.children():
            return children[0].pid
        os.sched_yield()
    raise RuntimeError(f"A machine did not start: {unshare.stdout and unshare.stdout.read()}")


def _expect(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if text in line:
            return
    raise RuntimeError("A machine did not start:\n" + "".join(said))


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _run(*arguments: str) -> None:
    ended = subprocess.run(
        arguments, env={"PATH": PATH}, capture_output=True, text=True, timeout=60
    )
    if ended.returncode:
        raise RuntimeError(f"{shlex.join(arguments)}: {ended.stderr.strip()}")
