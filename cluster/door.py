"""The `Door` of a process: where callers and we prove to each other that we are of one cluster."""

from collections.abc import Callable

from cluster.proof import Doorkeeper
from cluster.rpc import Call, Service, service_handlers
from penstock.v1 import worker_pb2


def door_service(doorkeeper: Doorkeeper, internal: Callable[[], str] = str) -> Service:
    """Serves proofs to all who ask. `internal`: where calls of the cluster come in, if not here."""

    async def prove(request: worker_pb2.ProveRequest, call: Call) -> worker_pb2.ProveResponse:
        answer = doorkeeper.answer(request.nonce, request.audience, request.proof, call.peer)
        return worker_pb2.ProveResponse(nonce=answer.nonce, proof=answer.proof)

    async def point(request: worker_pb2.InternalRequest, call: Call) -> worker_pb2.InternalResponse:
        return worker_pb2.InternalResponse(address=internal())

    return service_handlers("penstock.v1.Door", {"Prove": prove, "Internal": point})
