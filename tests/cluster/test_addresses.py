"""Who is meant by an address, and who may reach what listens there."""

import pytest

from cluster.addresses import Endpoint, outward
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
