"""The `Door` of a process: where callers and we prove to each other that we are of one cluster."""

from cluster.proof import Doorkeeper
from cluster.rpc import Call, Service, service_handlers
from penstock.v1 import worker_pb2


def door_service(doorkeeper: Doorkeeper) -> Service:
    """Serves proofs to all who ask."""

    async def prove(request: worker_pb2.ProveRequest, call: Call) -> worker_pb2.ProveResponse:
        answer = doorkeeper.answer(request.nonce, request.audience, request.proof, call.peer)
        return worker_pb2.ProveResponse(nonce=answer.nonce, proof=answer.proof)

    return service_handlers("penstock.v1.Door", {"Prove": prove})
