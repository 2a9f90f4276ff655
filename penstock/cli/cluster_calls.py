"""One call to the router's internal service, once both ends have proven to be of one cluster."""

import time
from pathlib import Path
from typing import Any

import grpc

from cluster.errors import Unauthenticated
from cluster.proof import Challenge
from cluster.secrets import load_secrets
from penstock.errors import UnauthenticatedError, from_rpc_error
from penstock.exchange import channel_options
from penstock.v1.worker_pb2 import ProveRequest
from penstock.v1.worker_pb2_grpc import ClusterStub, DoorStub

TIMEOUT_S = 2.0


def ask_cluster(
    method: str, request: Any, address: str, secrets_file: Path, *, timeout_s: float = TIMEOUT_S
) -> Any:
    """The response. Raises the SDK's errors."""
    challenge = Challenge(load_secrets(secrets_file).cluster_token)
    ends_at = time.monotonic() + timeout_s
    with grpc.insecure_channel(address, options=channel_options(address)) as channel:
        try:
            answer = DoorStub(channel).Prove(
                ProveRequest(nonce=challenge.nonce, proof=challenge.proof), timeout=timeout_s
            )
            let_in = challenge.accept(answer.nonce, answer.proof)[f"/penstock.v1.Cluster/{method}"]
            call = getattr(ClusterStub(channel), method)
            left_s = max(0.0, ends_at - time.monotonic())
            return call(request, timeout=left_s, metadata=(("authorization", let_in),))
        except Unauthenticated as error:
            raise UnauthenticatedError(error.message) from error
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
