"""Getting in, and letting in, where a test speaks plain gRPC."""

from typing import Any

import grpc
import grpc.aio

from cluster.proof import Challenge, Doorkeeper
from penstock.v1 import worker_pb2, worker_pb2_grpc

Metadata = tuple[tuple[str, str], ...]


async def let_in(channel: grpc.aio.Channel, path: str, token: str) -> Metadata:
    """What a call over this connection needs."""
    challenge = Challenge(token)
    request = worker_pb2.ProveRequest(nonce=challenge.nonce, proof=challenge.proof)
    stub: Any = worker_pb2_grpc.DoorStub(channel)
    answer = await stub.Prove(request, timeout=10, wait_for_ready=True)
    return (("authorization", challenge.accept(answer.nonce, answer.proof)[path]),)


async def ask_cluster(channel: grpc.aio.Channel, method: str, request: Any, token: str) -> Any:
    """One call to a router's internal service."""
    metadata = await let_in(channel, f"/penstock.v1.Cluster/{method}", token)
    stub: Any = worker_pb2_grpc.ClusterStub(channel)
    return await getattr(stub, method)(request, metadata=metadata, timeout=10)


async def told_to_leave(channel: grpc.aio.Channel) -> None:
    """Returns when no call of a channel goes to where the last ones went."""
    while (state := channel.get_state()) is grpc.ChannelConnectivity.READY:
        await channel.wait_for_state_change(state)


class ThreadedDoor(worker_pb2_grpc.DoorServicer):
    """The door of a fake server that runs on threads. Its `doorkeeper` has a token."""

    def __init__(self, token: str) -> None:
        self.doorkeeper = Doorkeeper(token)

    def Prove(
        self, request: worker_pb2.ProveRequest, context: grpc.ServicerContext
    ) -> worker_pb2.ProveResponse:
        said = request.nonce, request.audience, request.proof
        answer = self.doorkeeper.answer(*said, context.peer())
        return worker_pb2.ProveResponse(nonce=answer.nonce, proof=answer.proof)

    def check(self, context: grpc.ServicerContext, path: str) -> None:
        """Raises unless the call has its pass."""
        given = dict(context.invocation_metadata()).get("authorization")
        self.doorkeeper.check(context.peer(), path, str(given))
