"""Calls of a decode worker as a router makes them."""

from typing import Any

from cluster.channel import open_channel
from penstock.v1 import inference_pb2 as pb
from penstock.v1 import worker_pb2
from tests.router.fake_worker import TOKEN
from tests.workers.answers import prompt_of
from tests.workers.local_cluster import Running

PROMPT = prompt_of(1, 50)


def continuation(
    emitted: list[int], *, prompt: list[int] = PROMPT, prefill: Any = None, **params: Any
) -> worker_pb2.DecodeRequest:
    """The internal Decode call, as a router makes it after a decode worker was lost."""
    return worker_pb2.DecodeRequest(
        request_id="again",
        model="echo",
        prompt_token_ids=prompt,
        prefill=prefill,
        emitted=[worker_pb2.EmittedTokens(token_ids=emitted)],
        params=worker_pb2.ResolvedParams(
            top_p=1.0, repetition_penalty=1.0, num_choices=1, **params
        ),
        tenant="default",
    )


async def decode(running: Running, request: worker_pb2.DecodeRequest) -> list[pb.GenerateResponse]:
    async with open_channel(running.address, TOKEN) as channel:
        call = channel.stream("penstock.v1.Decode", "Generate", request, timeout_s=30)
        async with call:
            return [message async for message in call]
