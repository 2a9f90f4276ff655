"""`/v1/responses`, as OpenAI's unmodified client and plain HTTP find it. Workers are fakes."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest

from cluster.errors import InvalidRequest, Overloaded, UnsupportedFeature
from penstock.v1 import inference_pb2 as pb
from router.http.reading import BodyKind, packed_asked, read_body, unpacked_asked
from router.http.response_fields import REFUSED_IN_RESPONSES
from tests.router.cluster_of_fakes import MODEL, Cluster
from tests.router.fake_worker import Faults
from tests.router.http_clients import asked, openai_client, pinging, typed_events

PATH = "/v1/responses"
BEGIN = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
]
DELTA = "response.output_text.delta"
END = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


# An answer


async def test_a_response_is_answered_whole(cluster: Cluster) -> None:
    async with cluster.worker("d0", text="ab") as worker, openai_client(cluster) as client:
        await cluster.serving(worker)
        whole = await client.responses.create(
            model=MODEL, input="hello", max_output_tokens=3, metadata={"a": "b"}, user="u"
        )
        assert (whole.output_text, whole.status, whole.object) == (
            "ababab",
            "incomplete",
            "response",
        )
        assert whole.incomplete_details
        assert whole.incomplete_details.reason == "max_output_tokens"
        [message] = whole.output
        assert message.type == "message"
        assert (message.role, message.status) == ("assistant", "incomplete")
        assert (whole.model, whole.metadata, whole.user) == (MODEL, {"a": "b"}, "u")
        assert (whole.max_output_tokens, whole.error, whole.tools) == (3, None, [])
        assert whole.id == "resp_" + message.id.removeprefix("msg_")
        said = whole.to_dict()
        assert (said["store"], said["background"], said["service_tier"]) == (
            False,
            False,
            "default",
        )
        usage = whole.usage
        assert usage
        assert usage.output_tokens == 3
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        assert usage.input_tokens_details.cached_tokens == 0
        assert usage.output_tokens_details.reasoning_tokens == 0


async def test_one_that_ends_by_itself_is_completed(cluster: Cluster) -> None:
    ends = {"text": "a", "finish_reason": pb.FINISH_REASON_STOP}
    async with cluster.worker("d0", **ends) as worker, openai_client(cluster) as client:
        await cluster.serving(worker)
        whole = await client.responses.create(model=MODEL, input="hi")
        assert (whole.status, whole.incomplete_details) == ("completed", None)
        assert whole.output[0].status == "completed"  # type: ignore[union-attr]


async def test_events_come_in_openais_order_and_are_numbered(cluster: Cluster) -> None:
    async with cluster.worker("d0", text="ab") as worker:
        await cluster.serving(worker)
        body = {"input": "hello", "max_output_tokens": 3, "stream": True}
        reply = await asked(cluster, "POST", PATH, body)
        assert reply.headers["content-type"] == "text/event-stream"
        events = typed_events(reply.body)
        names = [name for name, _ in events]
        assert names == [*BEGIN, *[DELTA] * 3, *END, "response.incomplete"]
        assert [data["type"] for _, data in events] == names
        assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
        created, _, added, part, *_ = [data for _, data in events]
        assert (created["response"]["status"], created["response"]["output"]) == (
            "in_progress",
            [],
        )
        assert created["response"]["usage"] is None
        assert (added["item"]["status"], added["item"]["content"]) == ("in_progress", [])
        assert (part["item_id"], part["part"]["text"]) == (added["item"]["id"], "")
        *_, text, whole_part, item, last = [data for _, data in events]
        assert text["text"] == whole_part["part"]["text"] == "ababab"
        assert [item["item"]] == last["response"]["output"]
        assert item["item"]["content"] == [whole_part["part"]]
        assert last["response"]["usage"]["output_tokens"] == 3
        assert last["response"]["id"] == created["response"]["id"]


@pytest.mark.slow
async def test_openais_client_gathers_the_stream(cluster: Cluster) -> None:
    ends = {"text": "ab", "finish_reason": pb.FINISH_REASON_STOP}
    async with cluster.worker("d0", **ends) as worker, openai_client(cluster) as client:
        await cluster.serving(worker)
        text = ""
        async with client.responses.stream(model=MODEL, input="hey") as stream:
            async for event in stream:
                if event.type == "response.output_text.delta":
                    text += event.delta
            whole = await stream.get_final_response()
        assert text == whole.output_text == "ab" * len("user:hey;")
        assert whole.status == "completed"


async def test_instructions_and_messages_are_a_chat(cluster: Cluster) -> None:
    async with cluster.worker("d0", text="a") as worker, openai_client(cluster) as client:
        await cluster.serving(worker)
        items: Any = [
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "b", "annotations": []}],
            },
            {"role": "user", "content": "c"},
        ]
        whole = await client.responses.create(model=MODEL, instructions="s", input=items)
        assert whole.instructions == "s"
        chat = [
            {"role": role, "content": content}
            for role, content in [
                ("system", "s"),
                ("system", "d"),
                ("user", "a"),
                ("assistant", "b"),
                ("user", "c"),
            ]
        ]
        same: Any = await client.chat.completions.create(model=MODEL, messages=chat)  # type: ignore[arg-type]
        assert same.usage.prompt_tokens == whole.usage.input_tokens  # type: ignore[union-attr]
    first, second = worker.requests
    assert list(first.prompt_token_ids) == list(second.prompt_token_ids)


async def test_an_answer_goes_back_in_as_it_came(cluster: Cluster) -> None:
    async with cluster.worker("d0", text="a") as worker, openai_client(cluster) as client:
        await cluster.serving(worker)
        first = await client.responses.create(model=MODEL, input="a", top_logprobs=1)
        again: Any = [
            {"role": "user", "content": "a"},
            *first.output,
            {"role": "user", "content": "b"},
        ]
        assert (await client.responses.create(model=MODEL, input=again)).output_text


# What is read


def read(**said: Any) -> pb.GenerateRequest:
    body = json.dumps({"input": "a", **said}).encode()
    result = read_body(BodyKind.RESPONSE, body)
    assert unpacked_asked(packed_asked(BodyKind.RESPONSE, body)) == result
    return pb.GenerateRequest.FromString(result.messages[0])


def test_openais_names_stand_for_the_contracts() -> None:
    request = read(max_output_tokens=7, prompt_cache_key="k", temperature=0.5, stop="x", seed=-1)
    assert (request.stop.max_tokens, request.session_key) == (7, "k")
    assert (request.sampling.temperature, list(request.stop.stop_strings)) == (0.5, ["x"])
    assert request.sampling.seed == 2**64 - 1
    assert not read(top_logprobs=0).HasField("logprobs")
    assert read(top_logprobs=2).logprobs.top == 2
    included = read(include=["message.output_text.logprobs", "reasoning.encrypted_content"])
    assert (included.logprobs.HasField("top"), included.logprobs.top) == (True, 0)


CHANGING: dict[str, Any] = {
    "response_format": {"type": "json_schema"},
    "tool_choice": "required",
    "modalities": ["audio"],
    "service_tier": "flex",
    "length_penalty": 2,
    "reasoning": {"effort": "low"},
    "truncation": "auto",
}


@pytest.mark.parametrize("name", sorted(REFUSED_IN_RESPONSES))
def test_what_is_known_and_unsupported_is_refused_unless_it_changes_nothing(name: str) -> None:
    for harmless in (None, False, [], "", *REFUSED_IN_RESPONSES[name]):
        read(**{name: harmless})
    with pytest.raises(UnsupportedFeature, match=name):
        read(**{name: CHANGING.get(name, "something")})


def test_what_changes_nothing_and_what_is_unknown_is_let_pass() -> None:
    read(
        store=True,
        background=False,
        tools=[],
        parallel_tool_calls=False,
        text={"format": {"type": "text"}, "verbosity": "medium"},
        stream_options={"include_obfuscation": False},
        prompt_cache_retention="in_memory",
        max_tool_calls=3,
        whatever=[1, {"a": None}],
    )


def item(**said: Any) -> list[Any]:
    return [{"role": "user", "content": "a"}, said]


NAMED: list[tuple[dict[str, Any], str | None]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"reasoning": {"effort": "low"}}, "reasoning"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"text": {"format": {"type": "json_object"}}}, "text.format"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"n": 2}, "n"),
    ({"input": item(type="function_call", name="f")}, "input[1].function_call"),
    ({"input": item(type="item_reference", id="msg_1")}, "input[1].item_reference"),
    (
        {"input": item(role="user", content=[{"type": "input_image", "image_url": "x"}])},
        "input[1].content[0].input_image",
    ),
    (
        {"input": item(role="user", content=[{"type": "input_file", "file_id": "x"}])},
        "input[1].content[0].input_file",
    ),
    (
        {"input": item(role="user", content=[{"type": "input_audio", "input_audio": {}}])},
        "input[1].content[0].input_audio",
    ),
]
WRONG: list[tuple[dict[str, Any], str | None]] = [
    ({"input": []}, "input"),
    ({"input": None}, "input"),
    ({"input": "x" * 10**6}, "input"),
    ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role"),
    ({"input": [{"content": "a"}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": 7}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": "\ud800"}]}, None),
    ({"instructions": "\ud800"}, None),
    ({"user": "\ud800"}, None),
    ({"instructions": ["a"]}, "instructions"),
    ({"include": ["everything"]}, "include[0]"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 10**6}, "max_output_tokens"),
    ({"max_output_tokens": 10**400}, "max_output_tokens"),
    ({"top_logprobs": -1}, "top_logprobs"),
    ({"top_logprobs": 1000}, "top_logprobs"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"metadata": {"a": "x" * 513}}, "metadata"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"user": "x" * 513}, "user"),
    ({"stream": "yes"}, "stream"),
]


@pytest.mark.parametrize(("said", "param"), NAMED + WRONG)
async def test_what_is_wrong_is_named(
    cluster: Cluster, said: dict[str, Any], param: str | None
) -> None:
    async with cluster.worker("d0", text="a") as worker:
        await cluster.serving(worker)
        reply = await asked(cluster, "POST", PATH, {"input": "a", **said})
        assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
        code = "unsupported_feature" if (said, param) in NAMED else "invalid_request"
        assert reply.error["code"] == code
        assert param is None or str(reply.error["param"]).split("...")[0].startswith(param)
        assert reply.error["message"].endswith(".")
        assert worker.num_open == 0


async def test_openais_classes_are_raised(cluster: Cluster) -> None:
    async with openai_client(cluster) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.responses.create(model="other", input="a")
        assert unknown.value.param == "model"
        with pytest.raises(openai.BadRequestError, match="'previous_response_id'"):
            await client.responses.create(model=MODEL, input="a", previous_response_id="resp_1")
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve("resp_1")


# How it ends


async def test_a_stream_that_fails_ends_with_an_error_and_is_not_completed(
    cluster: Cluster,
) -> None:
    async with cluster.worker("d0", text="ab", faults=Faults(end_after=2)) as worker:
        await cluster.serving(worker)
        reply = await asked(cluster, "POST", PATH, {"input": "hello", "stream": True})
        assert reply.status == 200
        events = typed_events(reply.body)
        assert [name for name, _ in events] == [*BEGIN, DELTA, DELTA, "response.failed", "error"]
        assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
        failed, error = events[-2][1]["response"], events[-1][1]
        assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
        assert failed["output"][0]["content"][0]["text"] == "abab"
        assert failed["output"][0]["status"] == "incomplete"
        assert error["code"] == error["error"]["code"] == "stream_interrupted"
        assert "2 tokens were sent" in error["message"]


@pytest.mark.slow
async def test_one_that_fails_while_its_prompt_is_computed_was_created(cluster: Cluster) -> None:
    """After a ping there is no status to say it with any more."""
    server = pinging(cluster, ping_s=0.05)
    async with server, cluster.worker("d0", faults=Faults(stall_after=0)) as worker:
        await cluster.serving(worker)
        body = {"input": "a", "stream": True}
        late = {"at": server.address, "x_request_timeout": "1.5"}
        events = typed_events((await asked(cluster, "POST", PATH, body, **late)).body)
        names = [name for name, data in events if data]
        assert names == [*BEGIN[:2], "response.failed", "error"]
        assert events[-2][1]["response"]["output"] == []
        assert events[-1][1]["code"] == "deadline_exceeded"


async def listen(client: openai.AsyncOpenAI) -> None:
    async for _ in await client.responses.create(model=MODEL, input="a", stream=True):
        pass


async def gather(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model=MODEL, input="a") as stream:
        await stream.get_final_response()


@pytest.mark.parametrize("read_on", [listen, gather])
async def test_openais_client_raises_where_a_stream_fails(
    cluster: Cluster, read_on: Callable[[openai.AsyncOpenAI], Awaitable[None]]
) -> None:
    async with cluster.worker("d0", text="ab", faults=Faults(end_after=2)) as worker:
        await cluster.serving(worker)
        async with openai_client(cluster) as client:
            with pytest.raises(openai.APIError, match="2 tokens were sent"):
                await read_on(client)


async def test_a_failure_before_the_first_token_has_a_status(cluster: Cluster) -> None:
    wrong = InvalidRequest("stop.max_tokens", "It is too much.")
    async with cluster.worker("d0", faults=Faults(refuse=wrong)) as worker:
        await cluster.serving(worker)
        reply = await asked(cluster, "POST", PATH, {"input": "a", "stream": True})
        assert (reply.status, reply.error["param"]) == (400, "max_output_tokens")
    async with cluster.worker("d1", faults=Faults(refuse=Overloaded("Full."))) as worker:
        await cluster.serving(worker)
        reply = await asked(cluster, "POST", PATH, {"input": "a"})
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("is_stream", [True, False])
async def test_who_leaves_frees_everything_within_a_second(
    cluster: Cluster, is_stream: bool
) -> None:
    async with cluster.worker("d0", faults=Faults(stall_after=1)) as worker:
        await cluster.serving(worker)
        leaving = asyncio.create_task(
            asked(cluster, "POST", PATH, {"input": "hello", "stream": is_stream})
        )
        await cluster.until(lambda: worker.num_sent == 1)
        leaving.cancel()
        async with asyncio.timeout(1):
            await worker.cancelled.wait()
            await cluster.until(lambda: cluster.router.admission.num_in_flight == 0)
