"""Stands in for a router or a worker: reads its configuration, serves health, prints the ready
line. What it should do wrong is in its configuration, under `fault`."""

import asyncio
import hashlib
import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import grpc.aio
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cluster.health import PROGRESS
from cluster.process import follow_parent
from cluster.proof import Doorkeeper
from cluster.secrets import load_secrets
from penstock.v1 import worker_pb2, worker_pb2_grpc


class FakeCluster(worker_pb2_grpc.ClusterServicer):
    """A router that uses every worker that has a configuration beside its own."""

    async def Status(self, request: Any, context: Any) -> worker_pb2.StatusResponse:
        reply = worker_pb2.StatusResponse()
        for path in Path(sys.argv[2]).parent.glob("*-*.yaml"):
            reply.workers.add(serving=True).member.worker.worker_id = path.stem
        return reply


class FakeDoor(worker_pb2_grpc.DoorServicer):
    def __init__(self, doorkeeper: Doorkeeper) -> None:
        self._doorkeeper = doorkeeper

    async def Prove(self, request: Any, context: Any) -> worker_pb2.ProveResponse:
        said = request.nonce, request.audience, request.proof
        answer = self._doorkeeper.answer(*said, context.peer())
        return worker_pb2.ProveResponse(nonce=answer.nonce, proof=answer.proof)


async def main(config: dict[str, Any]) -> None:
    follow_parent()
    fault = config.get("fault", "")
    if fault == "refuses":
        sys.exit("error: the checkpoint is truncated; download it again.")
    drain = asyncio.Event()
    if fault != "deaf":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, drain.set)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    worker_pb2_grpc.add_ClusterServicer_to_server(FakeCluster(), server)
    token = load_secrets(Path(config["secrets_file"])).cluster_token
    worker_pb2_grpc.add_DoorServicer_to_server(FakeDoor(Doorkeeper(token)), server)
    port = server.add_insecure_port(config["address"])
    await server.start()
    print("a line that is no JSON")
    if fault != "mute":
        address = f"{config['address'].rpartition(':')[0]}:{port}"
        ready = {"ready": True, "role": "fake", "address": address}
        if http := config.get("http"):  # bound by nobody: the first port that is told stays
            ready["http"] = http.replace(":0", ":8123")
        print(json.dumps(ready), flush=True)
    if fault in ("wedged", "spins", "drains"):
        await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    if fault == "drains":
        await servicer.set(PROGRESS, health_pb2.HealthCheckResponse.SERVING)
    if fault == "spins":
        threading.Thread(target=spin, daemon=True).start()
    await drain.wait()
    note(Path(config["journal"]), config.get("worker_id", "router"))
    await server.stop(0)


def spin() -> None:
    """A step that never ends. It holds the interpreter little: health is answered."""
    block = bytes(1 << 20)
    while True:
        hashlib.sha256(block)


def note(journal: Path, name: str) -> None:
    with journal.open("a") as file:
        file.write(name + "\n")


asyncio.run(main(yaml.safe_load(Path(sys.argv[2]).read_text())))
