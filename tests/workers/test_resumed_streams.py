"""Streams that go on at another router: of a whole cluster in one loop, by gRPC, SDK and HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from penstock import AsyncClient, StreamInterruptedError
from penstock.v1 import inference_pb2 as pb
from tests.router.cluster_of_fakes import Cluster, failure
from tests.router.event_stream import EventStream, told
from tests.workers.answers import expected, greedy, prompt_of
from tests.workers.local_cluster import LocalCluster
from tests.workers.second_router import second_router

PROMPT = prompt_of(1, 30)
NUM_TOKENS = 120
LOOPBACK = "127.0.0.1:0"

pytestmark = pytest.mark.slow


@asynccontextmanager
async def two_routers(
    checkpoint: Path, directory: Path, **settings: Any
) -> AsyncIterator[tuple[LocalCluster, Cluster]]:
    cluster = LocalCluster(checkpoint, directory, prefill=(), http=LOOPBACK, **settings)
    async with cluster, second_router(cluster, http=LOOPBACK) as second:
        await cluster.until(lambda: _is_joined(cluster) and _is_joined(second))
        yield cluster, second


def _is_joined(cluster: Cluster) -> bool:
    """Whether answers come by frames, and so outlive us."""
    links = cluster.router.links.all()
    return all(link._frames is not None and link._frames.is_open for link in links)


def token_ids(messages: list[pb.GenerateResponse]) -> list[int]:
    return [i for message in messages for delta in message.deltas for i in delta.token_ids]


class Begun:
    """A stream of which some has come, and then its worker stands still."""

    def __init__(self, cluster: LocalCluster, **fields: Any) -> None:
        self._cluster = cluster
        self.messages: list[pb.GenerateResponse] = []
        self.call = cluster.inference.Generate(greedy(PROMPT, NUM_TOKENS, **fields), timeout=20)

    async def read(self, num: int) -> pb.Accepted:
        while len(token_ids(self.messages)) < num:
            self.messages.append(await self.call.read())
        self._cluster.decode[0].gate.close()
        return self.messages[0].accepted

    async def rest(self) -> None:
        while (message := await self.call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            self.messages.append(message)

    async def error(self) -> Any:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.rest()
        return failure(caught.value)


def attach(accepted: pb.Accepted, *next_index: int, **changes: Any) -> pb.AttachRequest:
    values = {
        "request_id": accepted.request_id,
        "resume_secret": accepted.resume_secret,
        "next_index": next_index,
        "decode_worker": accepted.decode_worker,
        **changes,
    }
    return pb.AttachRequest(**values)


async def attached(cluster: Cluster, request: pb.AttachRequest) -> list[pb.GenerateResponse]:
    return [message async for message in cluster.inference.Attach(request, timeout=20)]


async def test_an_answer_goes_on_at_another_router_from_the_token_that_is_asked_for(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with two_routers(checkpoint, tmp_path) as (cluster, second):
        begun = Begun(cluster)
        accepted = await begun.read(8)
        going_on = asyncio.create_task(attached(second, attach(accepted, 5, epoch=1)))
        assert (await begun.error()).reason == "ANSWER_MOVED"
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # a late call of the same client
            await attached(cluster, attach(accepted, 5, epoch=1))
        assert failure(caught.value).reason == "ANSWER_MOVED"
        cluster.decode[0].gate.open()
        rest = await going_on
        assert token_ids(rest) == expected(PROMPT, NUM_TOKENS)[5:]
        assert rest[-1].finished.usage.completion_tokens == NUM_TOKENS
        again = await attached(cluster, attach(accepted, NUM_TOKENS - 2, decode_worker=""))
        assert token_ids(again) == expected(PROMPT, NUM_TOKENS)[-2:]


async def test_who_attached_and_leaves_has_cancelled(checkpoint: Path, tmp_path: Path) -> None:
    async with two_routers(checkpoint, tmp_path) as (cluster, second):
        begun = Begun(cluster)
        accepted = await begun.read(2)
        call = second.inference.Attach(attach(accepted, 0), timeout=20)
        await call.read()
        call.cancel()
        cluster.decode[0].gate.open()
        async with asyncio.timeout(1):
            await cluster.idle()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await attached(second, attach(accepted, 0))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert failure(caught.value).reason == "ANSWER_GONE"


WRONG = {
    "another's secret": ({"resume_secret": bytes(16)}, "ANSWER_GONE"),
    "another request": ({"request_id": "another"}, "ANSWER_GONE"),
    "no request": ({"request_id": ""}, "INVALID_REQUEST"),
    "no secret": ({"resume_secret": b""}, "INVALID_REQUEST"),
    "no place": ({"next_index": ()}, "INVALID_REQUEST"),
    "no such worker": ({"decode_worker": "w9", "resume_secret": bytes(16)}, "NO_WORKER"),
}


async def test_what_is_wrong_is_said_and_disturbs_nobody(checkpoint: Path, tmp_path: Path) -> None:
    async with two_routers(checkpoint, tmp_path) as (cluster, second):
        begun = Begun(cluster)
        accepted = await begun.read(2)
        for name, (changes, reason) in WRONG.items():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await attached(second, attach(accepted, 0, **changes))
            assert failure(caught.value).reason == reason, name
        cluster.decode[0].gate.open()
        await begun.rest()
        assert token_ids(begun.messages) == expected(PROMPT, NUM_TOKENS)


async def test_the_client_goes_on_by_itself_when_its_router_stops(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with two_routers(checkpoint, tmp_path, drain_s=0.05) as (cluster, second):
        ports = [each.address.rpartition(":")[2] for each in (cluster, second)]
        address = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        options = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
        received: list[int] = []
        async with AsyncClient(address) as client:
            stream = client.generate(token_ids=PROMPT, n=2, timeout=20, **options)
            async for chunk in stream:
                if chunk.choice == 1:
                    received += chunk.token_ids
                if len(received) == 5:
                    cluster.decode[0].gate.close()
                    cluster.drain.set()
                    await cluster.until(lambda: cluster.router.admission.num_in_flight == 0)
                    cluster.decode[0].gate.open()
            answer = await stream.result()
        assert [list(choice.token_ids) for choice in answer.choices] == 2 * [received]
        assert received == expected(PROMPT, NUM_TOKENS)


async def test_where_nothing_outlives_a_router_its_streams_end_with_their_count(
    checkpoint: Path, tmp_path: Path
) -> None:
    """As of a worker of a release before frames."""
    mortal = [{"detached_s": 0.0}]
    async with two_routers(checkpoint, tmp_path, drain_s=0.05, decode=mortal) as (cluster, _):
        options = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
        received: list[int] = []
        async with AsyncClient(cluster.address) as client:
            stream = client.generate(token_ids=PROMPT, timeout=20, **options)
            received += (await anext(stream)).token_ids
            cluster.decode[0].gate.close()
            cluster.drain.set()
            with pytest.raises(StreamInterruptedError) as caught:
                await stream.result()
            assert stream.accepted is not None
            assert stream.accepted.resume_secret == b""
        assert caught.value.tokens_emitted >= len(received) > 0
        cluster.decode[0].gate.open()
        await cluster.until(lambda: cluster.decode[0].worker.open_calls.num == 0)


# HTTP


def of_choices(key: str, num: int) -> str:
    """The same key, of so many choices."""
    values = json.loads(bytes.fromhex(key))
    values[3] = num
    return json.dumps(values).encode().hex()


@pytest.mark.parametrize("kind", ["completions", "chat/completions"])
async def test_an_event_stream_goes_on_after_the_event_that_came_last(
    checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    body = {
        "max_tokens": 200,
        "stream": True,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
        **({"prompt": "hello"} if kind == "completions" else {}),
        **({"messages": [{"role": "user", "content": "hello"}]} if kind[0:2] == "ch" else {}),
    }
    async with two_routers(checkpoint, tmp_path) as (cluster, second):
        whole = EventStream(cluster.router.http_address, "POST", f"/v1/{kind}", body)
        await whole.read()
        first = EventStream(
            cluster.router.http_address, "POST", f"/v1/{kind}", body, x_request_id="a:b/c"
        )
        await first.read(6)
        cluster.decode[0].gate.close()
        last, key = first.events[4][0], first.headers["x-resume-key"]
        assert last.startswith("a:b/c:")
        path, kept = "/v1/streams/a:b/c", {"x_resume_key": key, "last_event_id": last}
        rest = EventStream(second.router.http_address, "GET", path, **kept)
        reading = asyncio.create_task(rest.read())
        await second.until(lambda: second.router.admission.num_in_flight == 1)
        cluster.decode[0].gate.open()
        await reading
        first.close()
        assert told(first.events[:5] + rest.events) == told(whole.events)
        assert rest.events[-1][1] == "[DONE]"
        assert json.loads(rest.events[-2][1])["usage"] == json.loads(whole.events[-2][1])["usage"]
        assert rest.headers["x-resume-key"] == key
        for changed, status in (
            ({**kept, "x_resume_key": key[:-2]}, 400),
            ({**kept, "x_resume_key": "zz"}, 400),
            ({**kept, "last_event_id": "a:b/d:4"}, 400),
            ({**kept, "last_event_id": "a:b/c:4,5"}, 400),
            ({**kept, "last_event_id": "a:b/c:4,x"}, 400),
            ({**kept, "last_event_id": "a:b/c:-4"}, 400),
            ({**kept, "last_event_id": "a:b/c:" + 5_000 * "9"}, 400),
            ({**kept, "x_resume_key": of_choices(key, 2), "last_event_id": "a:b/c:4,0"}, 400),
            ({**kept, "last_event_id": "a:b/c:4000000000"}, 404),  # nobody has said so much
        ):
            wrong = EventStream(second.router.http_address, "GET", path, **changed)
            await wrong.read()
            assert wrong.status == status
        head = EventStream(second.router.http_address, "HEAD", path, **kept)
        await head.read()
        assert head.status == 405
        gone = EventStream(second.router.http_address, "GET", "/v1/streams/other", x_resume_key=key)
        await gone.read()
        assert gone.status == 404
        assert b"answer_gone" in gone.came
