"""The HTTP door, as OpenAI's unmodified client and plain HTTP find it. Workers are fakes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from cluster.errors import InvalidRequest, Overloaded, WorkersDied
from cluster.limits import Limits
from penstock.v1 import inference_pb2 as pb
from router.config import RouterConfig
from tests.router.checkpoint import CONTEXT_LENGTH
from tests.router.cluster_of_fakes import MODEL, Cluster
from tests.router.fake_worker import Faults
from tests.router.http_clients import QUESTION, asked, frames, openai_client, pinging

CHAT = "/v1/chat/completions"


async def test_a_chat_is_answered_whole_and_as_a_stream(cluster: Cluster) -> None:
    async with cluster.worker("d0", text="ab") as worker, openai_client(cluster) as client:
        await cluster.serving(worker)
        chat = client.chat.completions
        whole = await chat.create(model=MODEL, messages=QUESTION, max_tokens=3)
        [choice] = whole.choices
        assert (choice.message.content, choice.finish_reason) == ("ababab", "length")
        assert (choice.message.role, whole.model, whole.object) == (
            "assistant",
            MODEL,
            "chat.completion",
        )
        assert whole.usage
        assert whole.usage.completion_tokens == 3
        stream = await chat.create(model=MODEL, messages=QUESTION, max_tokens=3, stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "ababab"
        assert [c.choices[0].delta.role for c in chunks][:2] == ["assistant", None]
        assert [c.choices[0].finish_reason for c in chunks][-2:] == [None, "length"]
        assert {c.id for c in chunks} == {chunks[0].id}
        assert all(c.usage is None for c in chunks)


async def test_usage_comes_last_where_it_was_asked_for(cluster: Cluster) -> None:
    async with cluster.worker("d0", text="ab") as worker:
        await cluster.serving(worker)
        body = {"messages": QUESTION, "stream": True, "stream_options": {"include_usage": True}}
        reply = await asked(cluster, "POST", CHAT, body)
        *chunks, usage, done = frames(reply.body)
        assert done == "[DONE]"
        assert json.loads(usage)["choices"] == []
        assert json.loads(usage)["usage"]["completion_tokens"] == len("user:hello;")
        assert all(json.loads(chunk)["usage"] is None for chunk in chunks)
        assert reply.headers["content-type"] == "text/event-stream"
        assert reply.headers["cache-control"] == "no-cache"


async def test_texts_and_ids_are_continued_together(cluster: Cluster) -> None:
    async with cluster.worker("d0", text="ab") as worker, openai_client(cluster) as client:
        await cluster.serving(worker)
        create = client.completions.create
        whole = await create(model=MODEL, prompt=["xyz", "x"], max_tokens=2, echo=True)
        assert [(c.index, c.text) for c in whole.choices] == [(0, "xyzabab"), (1, "xab")]
        assert whole.usage
        assert whole.usage.completion_tokens == 3
        ids = (await asked(cluster, "POST", "/tokenize", {"prompt": "hi"})).json["tokens"]
        one = await create(
            model=MODEL, prompt=ids, echo=True, extra_body={"return_token_ids": True}
        )
        assert one.choices[0].text == "hiabab"
        assert one.choices[0].model_extra == {"stop_reason": None, "token_ids": ids}
    requests = {tuple(request.prompt_token_ids) for request in worker.requests}
    assert len(requests) == 3


async def test_texts_under_the_longest_id_are_continued_together(cluster: Cluster) -> None:
    async with cluster.worker("d0", text="ab") as worker:
        await cluster.serving(worker)
        request_id = "a" * Limits().max_request_id_chars
        body = {"prompt": ["x", "y"] * 6, "max_tokens": 1}
        reply = await asked(cluster, "POST", "/v1/completions", body, x_request_id=request_id)
        assert (reply.status, len(reply.json["choices"])) == (200, 12)


async def test_a_completion_has_sixteen_tokens_where_nobody_says_it(cluster: Cluster) -> None:
    async with cluster.worker("d0") as worker, openai_client(cluster) as client:
        await cluster.serving(worker)
        whole = await client.completions.create(model=MODEL, prompt="x" * 100)
        assert whole.usage
        assert whole.usage.completion_tokens == 16


async def test_the_model_and_texts_are_told(cluster: Cluster) -> None:
    async with openai_client(cluster) as client:
        [model] = [each async for each in client.models.list()]
        assert model == await client.models.retrieve(MODEL)
        assert (model.id, model.owned_by) == (MODEL, "penstock")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other/one")
    tokens = (await asked(cluster, "POST", "/tokenize", {"prompt": "héllo"})).json
    assert (tokens["count"], tokens["max_model_len"]) == (6, CONTEXT_LENGTH)
    chat = await asked(cluster, "POST", "/tokenize", {"messages": QUESTION})
    assert chat.json["count"] == len("user:hello;")
    given = {"tokens": tokens["tokens"], "model": None}
    back = await asked(cluster, "POST", "/detokenize", given)
    assert back.json == {"prompt": "héllo"}
    assert (await asked(cluster, "GET", "/version")).json["version"]


async def test_probes_tell_life_from_readiness(cluster: Cluster) -> None:
    assert (await asked(cluster, "GET", "/livez")).status == 200
    not_ready = await asked(cluster, "GET", "/readyz")
    assert (not_ready.status, not_ready.headers["retry-after"]) == (503, "1")
    async with cluster.worker("d0") as worker:
        await cluster.serving(worker)
        assert (await asked(cluster, "GET", "/readyz")).status == 200
        assert (await asked(cluster, "HEAD", "/health")).body == b""


async def test_the_page_describes_every_path_and_field(cluster: Cluster) -> None:
    page = (await asked(cluster, "GET", "/openapi.json")).json
    assert {CHAT, "/v1/completions", "/v1/responses", "/v1/models", "/v1/models/{model}"} <= set(
        page["paths"]
    )
    chat = page["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "temperature", "top_k", "session_key", "stream_options"} <= set(chat)
    assert (chat["temperature"]["minimum"], chat["temperature"]["maximum"]) == (0, 10)


# What is refused

REFUSED = [
    ({"model": "other"}, openai.NotFoundError, "model"),
    ({"temperature": -1}, openai.BadRequestError, "temperature"),
    ({"temperature": "hot"}, openai.BadRequestError, "temperature"),
    ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
    ({"max_completion_tokens": 10**6}, openai.BadRequestError, "max_tokens"),
    ({"n": 10**6}, openai.BadRequestError, "n"),
    ({"stop": ["a"] * 1000}, openai.BadRequestError, "stop"),
    ({"stop": ["a", ""]}, openai.BadRequestError, "stop[1]"),
    ({"logit_bias": {"99999": 1}}, openai.BadRequestError, "logit_bias[99999]"),
    ({"top_logprobs": 3}, openai.BadRequestError, "top_logprobs"),
    ({"seed": 1.5}, openai.BadRequestError, "seed"),
    ({"messages": []}, openai.BadRequestError, "messages"),
    ({"messages": [{"role": "", "content": ""}]}, openai.BadRequestError, "messages[0].role"),
    ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools"),
    ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format"),
    ({"store": True}, openai.BadRequestError, "store"),
    ({"adapter": "lora"}, openai.BadRequestError, "adapter"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        openai.BadRequestError,
        "messages[0].content[0].image_url",
    ),
]


@pytest.mark.parametrize(("said", "error", "param"), REFUSED)
async def test_what_is_wrong_is_named(
    cluster: Cluster, said: dict[str, Any], error: type[openai.APIStatusError], param: str
) -> None:
    async with openai_client(cluster) as client:
        with pytest.raises(error) as caught:
            await client.chat.completions.create(
                **{"model": MODEL, "messages": QUESTION}, extra_body=said
            )
        assert caught.value.param == param
        assert caught.value.type == "invalid_request_error"
        assert dict(caught.value.body)["message"].endswith(".")  # type: ignore[call-overload]
        assert caught.value.request_id


async def test_what_changes_nothing_and_what_is_unknown_is_let_pass(cluster: Cluster) -> None:
    async with cluster.worker("d0", text="a") as worker, openai_client(cluster) as client:
        await cluster.serving(worker)
        harmless = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}}
        unknown = {"kv_transfer_params": {"remote_host": "10.0.0.1"}, "whatever": [1, {"a": None}]}
        whole = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            user="somebody",
            metadata={"a": "b"},
            seed=-7,
            extra_body={**harmless, **unknown},
        )
        assert whole.choices[0].message.content
    assert worker.requests[0].params.seed == 2**64 - 7


HEADS = [
    ("GET", "/nothing", {}, 404, "not_found"),
    ("DELETE", "/v1/models", {}, 405, "method_not_allowed"),
    ("GET", CHAT, {}, 405, "method_not_allowed"),
    ("POST", CHAT, {"content_type": "text/plain"}, 415, "unsupported_media_type"),
    ("POST", CHAT, {"content_encoding": "gzip"}, 415, "unsupported_encoding"),
    ("POST", CHAT, {"origin": "https://a.page"}, 403, "origin_not_allowed"),
    ("POST", CHAT, {"origin": "http://["}, 403, "origin_not_allowed"),
    ("POST", CHAT, {"x_request_id": "with space"}, 400, "invalid_request"),
    ("POST", CHAT, {"x_request_timeout": "soon"}, 400, "invalid_request"),
    ("POST", CHAT, {"origin": "http://localhost:3000"}, 503, "no_worker"),
]


@pytest.mark.parametrize(("method", "path", "headers", "status", "code"), HEADS)
async def test_what_only_http_can_get_wrong_has_its_status(
    cluster: Cluster, method: str, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    reply = await asked(cluster, method, path, {"messages": QUESTION}, **headers)
    assert (reply.status, reply.error["code"]) == (status, code)
    allowed = {"/v1/models": "get, head", CHAT: "post"}
    assert reply.headers.get("allow") == (allowed[path] if status == 405 else None)


@pytest.mark.parametrize("path", ["/livez", "/v1/models", "/nothing", CHAT])
async def test_every_answer_has_the_id_of_its_request(cluster: Cluster, path: str) -> None:
    reply = await asked(cluster, "GET", path, x_request_id="mine")
    assert reply.headers["x-request-id"] == "mine"
    drawn = {(await asked(cluster, "GET", path)).headers["x-request-id"] for _ in range(2)}
    assert len(drawn) == 2


async def test_a_body_may_name_the_request_where_no_header_does(cluster: Cluster) -> None:
    async with cluster.worker("d0", text="a") as worker:
        await cluster.serving(worker)
        body = {"messages": QUESTION, "max_tokens": 1, "request_id": "body"}
        reply = await asked(cluster, "POST", CHAT, body)
        assert (reply.headers["x-request-id"], reply.json["id"]) == ("body", "chatcmpl-body")
        reply = await asked(cluster, "POST", CHAT, body, x_request_id="header")
        assert reply.headers["x-request-id"] == "header"
        reply = await asked(cluster, "POST", CHAT, {**body, "request_id": "a b"})
        assert (reply.status, reply.error["param"]) == (400, "request_id")


async def test_who_is_shed_is_told_when_to_come_again(cluster: Cluster) -> None:
    async with cluster.worker("d0", faults=Faults(refuse=Overloaded("Full."))) as worker:
        await cluster.serving(worker)
        reply = await asked(cluster, "POST", CHAT, {"messages": QUESTION})
        assert (reply.status, reply.error["code"]) == (503, "overloaded")
        assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("1", "1000")
        async with openai_client(cluster) as client:
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model=MODEL, messages=QUESTION)


async def test_a_request_in_flight_is_not_sent_again(cluster: Cluster) -> None:
    async with cluster.worker("d0", faults=Faults(stall_after=1)) as worker:
        await cluster.serving(worker)
        call = cluster.inference.Generate(pb.GenerateRequest(text="x y", request_id="r"))
        await call.read()
        reply = await asked(cluster, "POST", CHAT, {"messages": QUESTION}, x_request_id="r")
        assert (reply.status, reply.headers["x-should-retry"]) == (409, "false")
        assert reply.headers["x-request-id"] == "r"
        call.cancel()


async def test_what_workers_die_of_is_never_sent_again(cluster: Cluster) -> None:
    died = WorkersDied("r", ["a", "b"], tokens_emitted=0)
    async with cluster.worker("d0", faults=Faults(refuse=died)) as worker:
        await cluster.serving(worker)
        reply = await asked(cluster, "POST", CHAT, {"messages": QUESTION})
        assert (reply.status, reply.headers["x-should-retry"]) == (500, "false")
        assert "retry-after" not in reply.headers


async def test_the_deadline_is_the_callers_and_the_phase_is_told(cluster: Cluster) -> None:
    async with cluster.worker("d0", faults=Faults(stall_after=0)) as worker:
        await cluster.serving(worker)
        reply = await asked(cluster, "POST", CHAT, {"messages": QUESTION}, x_request_timeout="0.2")
        assert (reply.status, reply.error["code"]) == (504, "deadline_exceeded")
        assert "after 0 tokens" in reply.error["message"]
        assert worker.remaining_s is not None
        assert worker.remaining_s <= 0.2


# How a stream ends


async def test_a_stream_that_fails_ends_with_an_error_and_is_not_done(cluster: Cluster) -> None:
    async with cluster.worker("d0", text="ab", faults=Faults(end_after=2)) as worker:
        await cluster.serving(worker)
        reply = await asked(cluster, "POST", CHAT, {"messages": QUESTION, "stream": True})
        assert reply.status == 200
        *_, last = frames(reply.body)
        assert json.loads(last)["error"]["code"] == "stream_interrupted"
        assert "2 tokens were sent" in json.loads(last)["error"]["message"]
        assert "[DONE]" not in reply.body.decode()


async def test_openais_client_raises_where_a_stream_fails(cluster: Cluster) -> None:
    async with cluster.worker("d0", text="ab", faults=Faults(end_after=2)) as worker:
        await cluster.serving(worker)
        async with openai_client(cluster) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=QUESTION, stream=True
            )
            with pytest.raises(openai.APIError, match="2 tokens were sent"):
                async for _ in stream:
                    pass


async def test_a_stream_that_fails_before_its_first_token_has_a_status(cluster: Cluster) -> None:
    wrong = InvalidRequest("stop.max_tokens", "It is too much.")
    async with cluster.worker("d0", faults=Faults(refuse=wrong)) as worker:
        await cluster.serving(worker)
        reply = await asked(cluster, "POST", CHAT, {"messages": QUESTION, "stream": True})
        assert (reply.status, reply.error["param"]) == (400, "max_tokens")


async def test_a_whole_answer_that_is_cut_off_may_be_asked_for_again(cluster: Cluster) -> None:
    """Nothing of it has reached the caller."""
    async with cluster.worker("d0", faults=Faults(end_after=2)) as worker:
        await cluster.serving(worker)
        reply = await asked(cluster, "POST", CHAT, {"messages": QUESTION})
        assert (reply.status, reply.error["code"]) == (503, "stream_interrupted")
        assert reply.headers["retry-after"] == "1"


@pytest.mark.parametrize("is_stream", [True, False])
async def test_who_leaves_frees_everything_within_a_second(
    cluster: Cluster, is_stream: bool
) -> None:
    async with cluster.worker("d0", faults=Faults(stall_after=1)) as worker:
        await cluster.serving(worker)
        body = json.dumps({"messages": QUESTION, "stream": is_stream}).encode()
        host, _, port = cluster.router.http_address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        await cluster.until(lambda: worker.num_sent == 1)
        writer.close()
        async with asyncio.timeout(1):
            await worker.cancelled.wait()
            await cluster.until(lambda: cluster.router.admission.num_in_flight == 0)


async def test_one_prompt_of_several_that_fails_ends_the_others(cluster: Cluster) -> None:
    async with cluster.worker("d0", faults=Faults(stall_after=0)) as worker:
        await cluster.serving(worker)
        body = {"prompt": ["a", "b", "x" * CONTEXT_LENGTH]}
        reply = await asked(cluster, "POST", "/v1/completions", body)
        assert (reply.status, reply.error["param"]) == (400, "prompt")
        await cluster.until(lambda: worker.num_open == 0)
        assert cluster.router.admission.num_in_flight == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "said", "begin", "end"),
    [
        (CHAT, {"messages": QUESTION}, '{"id"', "[DONE]"),
        ("/v1/responses", {"input": "hello"}, "event: response.created", "event: response.incompl"),
    ],
)
async def test_a_stream_says_that_it_lives_while_its_prompt_is_computed(
    cluster: Cluster, path: str, said: dict[str, Any], begin: str, end: str
) -> None:
    server = pinging(cluster, ping_s=0.05)
    async with server, cluster.worker("d0", text="a", delay_s=0.5) as worker:
        await cluster.serving(worker)
        body = {**said, "stream": True}
        events = frames((await asked(cluster, "POST", path, body, at=server.address)).body)
        num_pings = events.count(": ping")
        assert 2 <= num_pings <= 12
        assert set(events[:num_pings]) == {": ping"}
        assert events[num_pings].startswith(begin)
        assert events[-1].startswith(end)


async def test_a_router_that_stops_ends_open_streams_in_bounded_time(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with (
        Cluster(checkpoint, tmp_path, drain_s=0.05) as cluster,
        cluster.worker("d0", text="a", faults=Faults(stall_after=1)) as worker,
    ):
        await cluster.serving(worker)
        running = asyncio.create_task(
            asked(cluster, "POST", CHAT, {"messages": QUESTION, "stream": True})
        )
        idle = await asyncio.open_connection(*cluster.router.http_address.split(":"))
        await cluster.until(lambda: worker.num_sent == 1)
        cluster.drain.set()
        async with asyncio.timeout(5):
            *_, last = frames((await running).body)
            assert json.loads(last)["error"]["code"] == "stream_interrupted"
            assert await idle[0].read() == b""
            idle[1].close()
            await cluster._task


async def test_a_router_that_drains_finishes_what_runs_and_refuses_the_rest(
    checkpoint: Path, tmp_path: Path
) -> None:
    async with (
        Cluster(checkpoint, tmp_path, drain_s=10.0) as cluster,
        cluster.worker("d0", text="a", faults=Faults(stall_after=1)) as worker,
    ):
        await cluster.serving(worker)
        running = asyncio.create_task(asked(cluster, "POST", CHAT, {"messages": QUESTION}))
        await cluster.until(lambda: worker.num_sent == 1)
        cluster.drain.set()
        await cluster.until(lambda: cluster.router.admission.is_draining)
        refused = await asked(cluster, "POST", CHAT, {"messages": QUESTION})
        assert (refused.status, refused.error["code"]) == (503, "draining")
        assert (await asked(cluster, "GET", "/readyz")).status == 503
        assert (await asked(cluster, "GET", "/livez")).status == 200
        worker.resume()
        assert (await running).json["choices"][0]["message"]["content"] == "a" * 11


async def test_the_door_may_be_left_out(checkpoint: Path, tmp_path: Path) -> None:
    async with Cluster(checkpoint, tmp_path, http=None) as cluster:
        assert cluster.router.http_address == ""
        assert await cluster.health() is not None


def test_it_opens_to_others_only_where_that_is_said(checkpoint: Path) -> None:
    with pytest.raises(Exception, match=r"'http' is '0\.0\.0\.0:8000', where others"):
        RouterConfig(checkpoint=checkpoint, model="m", secrets_file=checkpoint, http="0.0.0.0:8000")
