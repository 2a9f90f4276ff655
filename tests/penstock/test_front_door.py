"""Who is let in at the router's address: said truly for every host, and never by accident."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from penstock.cli.front_door import reach_text
from router.config import RouterConfig
from tests.penstock.command_line import Penstock

OPEN = ["0.0.0.0", "::", "[::]", "192.0.2.77", "no-such-host.invalid", ""]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where nothing is left by what is refused."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", OPEN)
def test_serve_refuses_a_host_that_is_not_this_machines_own_affair(
    penstock: Penstock, host: str
) -> None:
    ended = penstock("serve", "--host", host)
    assert ended.code == 2
    assert "--host" in ended.err
    assert ended.err.count("\n") == 1


def test_serve_refuses_keys_that_no_router_could_read(penstock: Penstock) -> None:
    ended = penstock("serve", "--keys", "/nowhere/keys.json", "--host", "0.0.0.0")
    assert ended.code == 2
    assert "The file of API keys /nowhere/keys.json cannot be read" in ended.err


@pytest.mark.parametrize("host", ["192.0.2.77", "no-such-host.invalid"])
def test_even_a_word_opens_no_door_that_is_not_there(penstock: Penstock, host: str) -> None:
    ended = penstock("serve", "--host", host, "--insecure")
    assert ended.code == 2
    assert host in ended.err


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", ":0", "192.0.2.77:0"])
def test_a_router_that_others_can_reach_needs_the_word(address: str) -> None:
    given = {"checkpoint": "c", "model": "m", "secrets_file": "s", "address": address}
    with pytest.raises(ConfigError, match="insecure: true"):
        RouterConfig(**given)
    assert RouterConfig(**given, insecure=True).insecure
    assert not RouterConfig(**given, keys_file="keys.json").insecure
    with pytest.raises(ConfigError, match="'keys_file'"):
        RouterConfig(**{**given, "address": "127.0.0.1:0", "http": address})


@pytest.mark.parametrize("address", ["127.0.0.1:7", "[::1]:7", "localhost:7", "127.0.0.9:7"])
def test_a_loopback_is_said_to_be_for_this_machine(address: str) -> None:
    RouterConfig(checkpoint="c", model="m", secrets_file="s", address=address)
    assert reach_text(address).endswith("for this machine only")


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", socket.gethostname(), "192.0.2.77"])
def test_everything_else_is_said_to_be_open(host: str) -> None:
    said = reach_text(f"{host}:7")
    if all(address[0].startswith("127.") for *_, address in _known(host)):
        assert said.endswith("for this machine only")  # a host whose name means its loopback
        return
    assert said.startswith("INSECURE")
    assert f"{host}:7" in said


def _known(host: str) -> list[tuple[object, ...]]:
    return list(socket.getaddrinfo(host.strip("[]"), 7, type=socket.SOCK_STREAM))
