"""One call to the router's internal service, once both ends have proven to be of one cluster."""

import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from cluster.addresses import Endpoint
from cluster.authority import Credentials, TlsIdentity, facts_of
from cluster.errors import ConfigError, Unauthenticated
from cluster.errors import PenstockError as ClusterError
from cluster.proof import Challenge
from cluster.secrets import load_secrets
from cluster.tls import TARGET, channel_credentials, why_unconnected
from penstock.errors import (
    PenstockError,
    UnauthenticatedError,
    UnreachableError,
    from_rpc_error,
)
from penstock.exchange import channel_options
from penstock.v1.worker_pb2 import InternalRequest, ProveRequest
from penstock.v1.worker_pb2_grpc import ClusterStub, DoorStub

TIMEOUT_S = 2.0


def ask_cluster(
    method: str, request: Any, address: str, secrets_file: Path, *, timeout_s: float = TIMEOUT_S
) -> Any:
    """The response, within the time for all of it. Raises the SDK's errors."""
    secrets = load_secrets(secrets_file)
    challenge = Challenge(secrets.cluster_token)
    ends_at = time.monotonic() + timeout_s
    address = internal_address(address, secrets_file, timeout_s=min(TIMEOUT_S, timeout_s / 2))
    identity = Credentials(secrets.authority).at(address)

    def left_s() -> float:
        return max(0.0, ends_at - time.monotonic())

    with _channel(address, identity) as channel:
        try:
            answer = DoorStub(channel).Prove(
                ProveRequest(nonce=challenge.nonce, proof=challenge.proof), timeout=left_s()
            )
            let_in = challenge.accept(answer.nonce, answer.proof)[f"/penstock.v1.Cluster/{method}"]
            call = getattr(ClusterStub(channel), method)
            return call(request, timeout=left_s(), metadata=(("authorization", let_in),))
        except Unauthenticated as error:
            raise UnauthenticatedError(error.message) from error
        except grpc.RpcError as error:
            failure = why_unconnected(error.details() or "", is_tls=identity is not None)
            raise (_failure(address, failure) if failure else from_rpc_error(error)) from error


def internal_address(address: str, secrets_file: Path, *, timeout_s: float = TIMEOUT_S) -> str:
    """Finds where a router hears calls of the cluster: beyond loopback clients come in elsewhere.
    Who points us somewhere else gains nothing: there TLS is spoken, or nothing is said."""
    if not Credentials(load_secrets(secrets_file).authority).covers(address):
        return address
    ends_at = time.monotonic() + timeout_s
    with suppress(grpc.RpcError, ConfigError), _channel(address, None) as channel:
        return _told(channel, address, timeout_s)
    if (left_s := ends_at - time.monotonic()) > 0:  # it hung up: it may speak TLS
        wrong = (grpc.RpcError, ConfigError, OSError, ValueError)
        with suppress(*wrong), _on_sight(address, left_s / 2) as channel:
            return _told(channel, address, left_s / 2)
    return address  # it is that itself, or says nothing


def _told(channel: grpc.Channel, address: str, timeout_s: float) -> str:
    said = DoorStub(channel).Internal(InternalRequest(), timeout=timeout_s).address
    internal = Endpoint.parse(said)
    asked = address.rpartition(":")[0].strip("[]")
    return str(Endpoint(asked, internal.port) if internal.is_any else internal)


def _on_sight(address: str, timeout_s: float) -> grpc.Channel:
    """Speaks TLS with a front door, whoever has signed what it shows."""
    shown = ssl.get_server_certificate(Endpoint.parse(address), timeout=timeout_s).encode()
    names = facts_of(shown).names or (address,)
    name = ("grpc.ssl_target_name_override", names[0].replace("*", "any", 1))
    options = [*channel_options(address), name]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(shown), options)


def _channel(address: str, identity: TlsIdentity | None) -> grpc.Channel:
    options = channel_options(address)
    if identity is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, channel_credentials(identity), [*options, TARGET])


def _failure(address: str, error: ClusterError) -> PenstockError:
    kind = UnauthenticatedError if isinstance(error, Unauthenticated) else UnreachableError
    return kind(f"The router at {address} is not to be spoken to: {error.message}")
