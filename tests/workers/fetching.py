"""Requests whose prefix another worker holds, and what came of them."""

from dataclasses import replace
from typing import Any

from cluster.types import WorkerAddress
from cluster.worker_codec import address_from_pb, address_to_pb
from penstock.v1 import worker_pb2
from tests.workers.answers import expected, prompt_of
from tests.workers.decoding import continuation, decode
from tests.workers.local_cluster import Running

PROMPT = prompt_of(4, 100)
SLOT_BYTES = 2 * 2 * 8  # layers, K and V, heads x width x float32


def address(running: Running) -> worker_pb2.WorkerAddress:
    return address_to_pb(replace(running.worker.member.worker, address=running.address))


def named(running: Running) -> worker_pb2.WorkerAddress:
    """As a router names it to another worker."""
    worker = running.worker.member.worker
    return worker_pb2.WorkerAddress(worker_id=worker.worker_id, incarnation=worker.incarnation)


def told(receiver: Running, facts: worker_pb2.WorkerAddress) -> worker_pb2.WorkerAddress:
    """From now on the receiver knows these facts of a worker's life. Returns its name."""
    peers = receiver.worker._transfers.peers
    other, asked = address_from_pb(facts), peers.named

    def known(worker: str, incarnation: str) -> WorkerAddress:
        is_it = incarnation == other.incarnation
        return other if is_it else asked(worker, incarnation)

    peers.named = known
    return worker_pb2.WorkerAddress(worker_id=other.worker_id, incarnation=other.incarnation)


def request(
    prompt: list[int] = PROMPT, num: int = 8, *, source: Running | None = None, **fields: Any
) -> worker_pb2.DecodeRequest:
    made = continuation([], prompt=prompt, max_tokens=num, **fields)
    if source is not None:
        made.source.CopyFrom(named(source))
    return made


def ids(messages: list[Any]) -> list[int]:
    return [i for message in messages for delta in message.deltas for i in delta.token_ids]


def counted(running: Running, name: str) -> float:
    return running.counters[name]


async def warm(running: Running, prompt: list[int] = PROMPT) -> None:
    assert ids(await decode(running, request(prompt))) == expected(prompt, 8)
