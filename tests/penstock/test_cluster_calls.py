"""A call to the router's internal service keeps to its time, however many steps it takes."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from cluster.addresses import Endpoint
from cluster.door import door_service
from cluster.proof import Doorkeeper
from cluster.rpc import Server
from cluster.secrets import create_secrets
from cluster.tls import certificate_configuration, followed_credentials
from penstock.cli import cluster_calls
from penstock.cli.cluster_calls import internal_address
from penstock.errors import PenstockError
from tests.certificates import SigningCa
from tests.identities import BEYOND_LOOPBACK


class Silence(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.DEADLINE_EXCEEDED

    def details(self) -> str:
        return "Deadline Exceeded"

    def trailing_metadata(self) -> tuple[Any, ...]:
        return ()


@dataclass(slots=True, eq=False)
class MuteDoor:
    """Every call takes all its time, and none is answered."""

    now: float = 100.0
    waited: dict[str, float] = field(default_factory=dict)

    def monotonic(self) -> float:
        return self.now

    def Internal(self, _: Any, *, timeout: float) -> Any:
        self._wait("Internal", timeout)

    def Prove(self, _: Any, *, timeout: float) -> Any:
        self._wait("Prove", timeout)

    def _wait(self, name: str, timeout_s: float) -> None:
        self.waited[name] = timeout_s
        self.now += timeout_s
        raise Silence


@pytest.mark.parametrize("limit_s", [0.5, 2.0, 30.0])
def test_who_asks_a_mute_router_waits_no_longer_than_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_s: float
) -> None:
    create_secrets(tmp_path / "secrets.yaml")
    door = MuteDoor()
    monkeypatch.setattr(cluster_calls, "DoorStub", lambda _: door)
    monkeypatch.setattr(cluster_calls.time, "monotonic", door.monotonic)
    with pytest.raises(PenstockError):
        cluster_calls.ask_cluster(
            "Status", None, "192.0.2.1:50051", tmp_path / "secrets.yaml", timeout_s=limit_s
        )
    assert set(door.waited) == {"Internal", "Prove"}
    assert sum(door.waited.values()) <= limit_s
    assert door.waited["Prove"] > 0


async def test_a_front_door_under_tls_tells_the_way_whoever_signed_it(tmp_path: Path) -> None:
    secrets_file = tmp_path / "secrets.yaml"
    create_secrets(secrets_file, with_authority=True)
    configuration = certificate_configuration(*SigningCa().pair("*.example.com"), None)
    shown = followed_credentials(lambda: configuration, asks_clients=False)
    door = door_service(Doorkeeper("t" * 20), lambda: "0.0.0.0:4711")
    address = str(Endpoint(BEYOND_LOOPBACK, 0))
    async with Server([door], address=address, shown=shown) as server:
        told = await asyncio.to_thread(internal_address, server.address, secrets_file)
    assert told == str(Endpoint(BEYOND_LOOPBACK, 4711))
