"""The SDK over TLS: how it is asked for, whom it believes, and what it says when that fails."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from penstock import (
    AsyncClient,
    Client,
    InvalidRequestError,
    UnauthenticatedError,
    UnreachableError,
)
from tests.certificates import Pair, SigningCa, put, write_pair
from tests.router.cluster_of_fakes import Cluster

CA, CLIENTS = SigningCa(), SigningCa("clients")


def over_tls(checkpoint: Path, folder: Path, pair: Pair, **given: Any) -> Cluster:
    files = write_pair(folder, pair, given.get("client_ca"))
    return Cluster(checkpoint, folder, tls=files, internal="127.0.0.1:0", drain_s=5.0)


def trusted(folder: Path) -> dict[str, Any]:
    return {"ca_file": put(folder / "ca.pem", CA.certificate), "connect_timeout": 5.0}


async def asked(address: str, **given: Any) -> str:
    async with AsyncClient(address, **given) as client:
        return (await client.model()).name


async def test_both_clients_speak_tls(checkpoint: Path, tmp_path: Path) -> None:
    given = trusted(tmp_path)

    def ask_blocking(address: str) -> str:
        with Client(address, **given) as client:
            assert client.address == f"grpcs://{cluster.address}"
            return client.model().name

    async with over_tls(checkpoint, tmp_path, CA.pair()) as cluster:
        for address in cluster.address, f"grpcs://{cluster.address}":
            assert await asked(address, **given) == "echo"
            assert await asyncio.to_thread(ask_blocking, address) == "echo"


async def test_the_certificate_itself_may_be_believed(checkpoint: Path, tmp_path: Path) -> None:
    async with over_tls(checkpoint, tmp_path, CA.pair("llm.example.com")) as cluster:
        given = {"ca_file": tmp_path / "certificate.pem", "server_name": "llm.example.com"}
        assert await asked(cluster.address, **given) == "echo"


@pytest.mark.parametrize(
    ("pair", "knows_ca", "told"),
    [
        (CA.pair(), False, "give as ca_file who signed it"),
        (CA.pair("llm.example.com"), True, "is for another host"),
        (CA.pair(days=-1), True, "has ended"),
    ],
)
async def test_a_server_that_is_not_believed_is_told_at_once(
    pair: Pair, knows_ca: bool, told: str, checkpoint: Path, tmp_path: Path
) -> None:
    given = trusted(tmp_path) if knows_ca else {}
    async with over_tls(checkpoint, tmp_path, pair) as cluster:
        with pytest.raises(UnauthenticatedError, match=told):
            async with asyncio.timeout(3):  # not waited for, as who is away is
                await asked(f"grpcs://{cluster.address}", **given)


async def test_a_cluster_that_asks_for_certificates_gets_one(
    checkpoint: Path, tmp_path: Path
) -> None:
    pair = CLIENTS.pair(name="app")
    own = {
        "cert_file": put(tmp_path / "own.pem", pair.certificate),
        "key_file": put(tmp_path / "own.key", pair.key),
    }
    ca = CLIENTS.certificate
    async with over_tls(checkpoint, tmp_path, CA.pair(), client_ca=ca) as cluster:
        given = {**trusted(tmp_path), "connect_timeout": 0}
        assert await asked(cluster.address, **given, **own) == "echo"
        with pytest.raises(UnreachableError, match="give cert_file and key_file"):
            await asked(cluster.address, **given)


async def test_a_wrong_way_in_is_told(cluster: Cluster, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UnauthenticatedError, match="speaks no TLS there"):
        await asked(f"grpcs://{cluster.address}")
    folder = tmp_path / "other"
    folder.mkdir()
    async with over_tls(checkpoint, folder, CA.pair()) as secured:
        with pytest.raises(UnreachableError, match="dial it as grpcs://"):
            await asked(secured.address, connect_timeout=0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"cert_file": "here.pem"}, "'key_file': give both"),
        ({"key_file": "here.pem"}, "'cert_file': give both"),
        ({"ca_file": "nowhere.pem"}, "nowhere.pem cannot be read"),
        ({"ca_file": "empty.pem"}, "is no PEM file"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    given: dict[str, str], told: str, tmp_path: Path
) -> None:
    for name in ("here.pem", "empty.pem"):
        (tmp_path / name).write_text("")
    paths = {name: tmp_path / path for name, path in given.items()}
    with pytest.raises(InvalidRequestError, match=told):
        Client("127.0.0.1:1", **paths)  # type: ignore[arg-type]
