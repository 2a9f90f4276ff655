"""One call to the router's internal service, with the cluster's token."""

from pathlib import Path
from typing import Any

import grpc

from cluster.secrets import load_secrets
from penstock.errors import from_rpc_error
from penstock.exchange import channel_options
from penstock.v1.worker_pb2_grpc import ClusterStub

TIMEOUT_S = 2.0


def ask_cluster(
    method: str, request: Any, address: str, secrets_file: Path, *, timeout_s: float = TIMEOUT_S
) -> Any:
    """The response. Raises the SDK's errors."""
    token = load_secrets(secrets_file).cluster_token
    with grpc.insecure_channel(address, options=channel_options(address)) as channel:
        call = getattr(ClusterStub(channel), method)
        metadata = (("authorization", f"Bearer {token}"),)
        try:
            return call(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
