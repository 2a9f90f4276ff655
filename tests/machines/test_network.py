"""What the machines of the other tests are: apart from each other and from this one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.machines import network
from tests.machines.network import ROOT, Machine, Network

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

MAKER = """
import sys
from pathlib import Path
from tests.machines.network import Network

made = Network(Path(sys.argv[1]))
print(made.add("one", environment={}).pid, flush=True)
sys.stdin.read()
"""


def reaches(machine: Machine, address: str, *, within_s: int = 20) -> bool:
    """Whether its sshd can be dialled."""
    dial = ("timeout", str(within_s), "bash", "-c", f"</dev/tcp/{address}/22")
    return not machine.run(*dial, check=False).returncode


@pytest.fixture
def pair(machines: Network) -> tuple[Machine, Machine]:
    return machines.add("one", environment={}), machines.add("two", environment={})


def test_a_machine_has_its_own_name_processes_and_memory(
    machines: Network, pair: tuple[Machine, Machine]
) -> None:
    one, two = pair
    assert [each.run("hostname").stdout for each in pair] == ["one\n", "two\n"]
    one.run("bash", "-c", "echo kept | tee /dev/shm/a /tmp/b /run/c ~/d")
    assert not any(Path(path).exists() for path in ("/dev/shm/a", "/tmp/b", "/run/c"))
    made = {"/dev/shm/a", "/tmp/b", "/run/c", f"{machines.home}/d"}
    assert one.files() - two.files() == made
    assert (one.home / "d").read_text() == "kept\n"
    one.start("sleep", "60", log=one.directory / "log")
    one.run("bash", "-c", "until pidof sleep; do :; done")
    assert [process.name() for process in one.processes()] == ["sleep"]
    assert two.processes() == []


def test_a_login_is_on_the_machine_dialled(machines: Network, pair: tuple[Machine, ...]) -> None:
    options = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
    login = ("ssh", "-i", str(machines.key), *options, f"root@{pair[1].address}")
    assert pair[0].run(*login, "hostname; pwd").stdout == f"two\n{machines.home}\n"


def test_nothing_is_reached_but_the_others(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    assert reaches(one, two.address)
    outward = next(
        address.address
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if name == "lo" and address.family == 2
    )
    listening = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", outward, "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        text=True,
    )
    try:
        assert listening.stdout is not None
        port = listening.stdout.readline().split(" port ")[1].split()[0]
        dialled = one.run("bash", "-c", f"</dev/tcp/{outward}/{port}", check=False)
        assert "refused" in dialled.stderr
    finally:
        listening.kill()
        listening.communicate()


def test_a_machine_that_is_lost_takes_everything_along(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    deaf = one.start("bash", "-c", "trap '' TERM HUP; echo up; sleep 60", log=one.directory / "log")
    one.run("bash", "-c", "until pidof sleep; do :; done")
    one.lose()
    deaf.wait(timeout=10)
    assert one.processes() == []
    assert not reaches(two, one.address, within_s=1)


def test_a_machine_comes_back_with_its_home_and_at_its_address(
    pair: tuple[Machine, Machine],
) -> None:
    one, two = pair
    one.run("bash", "-c", "echo kept | tee ~/a /tmp/b")
    one.lose()
    one.power_on()
    assert reaches(two, one.address)
    assert one.run("bash", "-c", "cat ~/a; ls /tmp/b", check=False).stdout == "kept\n"


def test_a_machine_that_is_cut_off_heals(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    one.cut_off()
    assert not reaches(two, one.address, within_s=1)
    assert not reaches(one, two.address, within_s=1)
    one.heal()
    assert reaches(two, one.address)
    assert reaches(one, two.address)


def test_machines_end_with_their_maker(machines: Network, tmp_path: Path) -> None:
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(tmp_path / "other")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert maker.stdout is not None
    first = psutil.Process(int(maker.stdout.readline()))
    maker.send_signal(signal.SIGKILL)
    maker.communicate()
    first.wait(timeout=10)


def test_where_none_can_be_made_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "UNSHARE", ("sh", "-c", "echo no >&2; exit 1"))
    monkeypatch.setattr(network, "TOOLS", {"sh": "dash"})
    assert network.missing() == ("Machines cannot be made here: namespaces are forbidden (no).")
    monkeypatch.setattr(network, "TOOLS", {"sh": "dash", "no-such-tool": "a", "nor-this": "b"})
    assert network.missing() == "Machines cannot be made here: install a b."
