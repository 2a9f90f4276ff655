"""An address as people write it, and what they are told when it is none."""

import pytest

from penstock import AsyncClient, Client, InvalidRequestError, UnreachableError
from penstock.address import with_port
from tests.penstock.command_line import Penstock


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("localhost", "localhost:50051"),
        ("127.0.0.1", "127.0.0.1:50051"),
        ("gpu-7.cluster:443", "gpu-7.cluster:443"),
        ("::1", "[::1]:50051"),
        ("[::1]", "[::1]:50051"),
        ("[::1]:7", "[::1]:7"),
        ("unix:/run/penstock.sock", "unix:/run/penstock.sock"),
        ("dns:///gpu-7:7", "dns:///gpu-7:7"),
        ("ipv4:10.0.0.1:7,10.0.0.2:7", "ipv4:10.0.0.1:7,10.0.0.2:7"),
    ],
)
def test_without_a_port_it_is_ours(given: str, meant: str) -> None:
    assert with_port(given) == meant


@pytest.mark.parametrize(
    "given",
    [
        *("", ":50051", "host:", "host:http", "host:0", "host:65536", "host:-1", "host:\u0665"),
        *("a:1:2", "[::1", "[x]:1", "[::1]7", "[]", "http://host:50051", "a b:1"),
    ],
)
def test_what_is_none_is_refused_in_a_sentence(penstock: Penstock, given: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"is no address: give HOST or HOST:PORT"):
        Client(given)
    if given:  # an empty one is left out
        ended = penstock("models", "-a", given)
        assert ended.code == 2
        assert "is no address" in ended.err


def test_the_port_that_was_tried_is_named(
    penstock: Penstock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client("127.0.0.2", connect_timeout=0) as client:
        assert client.address == "127.0.0.2:50051"
        with pytest.raises(UnreachableError, match=r"no connection to 127\.0\.0\.2:50051"):
            client.models()
    monkeypatch.setenv("PENSTOCK_ADDRESS", "127.0.0.2")
    for command in (("models",), ("status",), ("simulate", "--like", "127.0.0.2")):
        ended = penstock(*command)
        assert ended.code == 4
        assert "127.0.0.2:50051" in ended.err


async def test_the_other_client_too() -> None:
    async with AsyncClient("127.0.0.2") as client:
        assert client.address == "127.0.0.2:50051"
