"""Who is meant by an address, and who may reach what listens there."""

import pytest

from cluster.addresses import (
    Endpoint,
    advertised,
    host_of_peer,
    is_loopback,
    is_loopback_address,
    outward,
)
from cluster.errors import ConfigError


@pytest.mark.parametrize("text", ["127.0.0.1:50051", "[::1]:1", "localhost:0", ":65535"])
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    assert str(Endpoint.parse(text)) == text


@pytest.mark.parametrize("text", ["", "localhost", "::1:50051", "a:b", "a:65536", "a:-1", "a:"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        Endpoint.parse(text)


@pytest.mark.parametrize(
    ("text", "dialled"),
    [
        ("0.0.0.0:7", "127.0.0.1:7"),
        ("[::]:7", "127.0.0.1:7"),
        (":7", "127.0.0.1:7"),
        ("127.0.0.5:7", "127.0.0.5:7"),
        ("localhost:7", "localhost:7"),
    ],
)
def test_what_listens_everywhere_is_dialled_by_the_loopback(text: str, dialled: str) -> None:
    assert str(Endpoint.parse(text).to_dial) == dialled


@pytest.mark.parametrize("text", ["127.0.0.1:7", "127.9.9.9:7", "[::1]:7", "localhost:7"])
def test_a_loopback_is_for_this_machine_alone(text: str) -> None:
    assert not Endpoint.parse(text).is_open_to_others


@pytest.mark.parametrize("text", ["0.0.0.0:7", "[::]:7", ":7", "192.0.2.1:7", "no.invalid:7"])
def test_others_may_reach_everything_else(text: str) -> None:
    assert Endpoint.parse(text).is_open_to_others


def test_an_address_towards_others_is_none_that_only_this_machine_knows() -> None:
    assert not any(address.startswith("127.") or address == "::1" for address in outward())


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_a_loopback_is_known_by_how_it_is_written(host: str) -> None:
    assert is_loopback(host)
    assert is_loopback_address(str(Endpoint(host, 7)))


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.0.2.1", "fd00::1", "a-name", "127.1"])
def test_whatever_else_is_written_is_none(host: str) -> None:
    """A name may mean the loopback here and something else there: both must come to the same."""
    assert not is_loopback(host)
    assert not is_loopback_address(str(Endpoint(host, 7)))


@pytest.mark.parametrize(
    ("listens", "host", "dialled"),
    [
        ("10.0.0.2:7", None, "10.0.0.2:7"),
        ("0.0.0.0:7", "10.0.0.2", "10.0.0.2:7"),
        ("10.0.0.2:0", "worker.internal", "worker.internal:0"),
        ("127.0.0.1:7", None, "127.0.0.1:7"),
        ("127.0.0.2:7", "localhost", "localhost:7"),
        ("[::]:7", "fd00::2", "[fd00::2]:7"),
    ],
)
def test_what_is_dialled_may_differ_from_where_it_listens(
    listens: str, host: str | None, dialled: str
) -> None:
    assert str(advertised(Endpoint.parse(listens), host)) == dialled


def test_on_all_addresses_the_one_towards_others_is_dialled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.addresses.outward", lambda: ("192.0.2.9", "fd00::9"))
    assert str(advertised(Endpoint.parse("0.0.0.0:7"), None)) == "192.0.2.9:7"
    monkeypatch.setattr("cluster.addresses.outward", lambda: ("fd00::9",))
    assert str(advertised(Endpoint.parse("[::]:7"), None)) == "[fd00::9]:7"
    with pytest.raises(ConfigError, match="give theirs for it as 'advertise'"):
        advertised(Endpoint.parse("0.0.0.0:7"), None)


@pytest.mark.parametrize(
    ("listens", "host", "sentence"),
    [
        ("10.0.0.2:7", "0.0.0.0", "nobody can dial"),
        ("10.0.0.2:7", "", "nobody can dial"),
        ("0.0.0.0:7", "127.0.0.1", "for this machine alone"),
        ("127.0.0.1:7", "10.0.0.2", "for this machine alone"),
    ],
)
def test_what_leads_nowhere_is_not_advertised(listens: str, host: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        advertised(Endpoint.parse(listens), host)


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.2:4711", "10.0.0.2"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("ipv6:[fe80::1%25eth0]:4711", "fe80::1%eth0"),
        ("unix:", "unix:"),
    ],
)
def test_a_peers_host_is_read_from_what_grpc_writes(peer: str, host: str) -> None:
    assert host_of_peer(peer) == host
