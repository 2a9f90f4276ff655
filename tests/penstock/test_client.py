"""What a caller of either client sees."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

import penstock
from penstock import AsyncClient, Client
from penstock.v1 import inference_pb2 as pb

Ask = Callable[..., penstock.Answer]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def conftest_of(request: pytest.FixtureRequest) -> Any:
    return request.config.pluginmanager.get_plugin(str(request.path.parent / "conftest.py"))


@pytest.fixture
def steps(request: pytest.FixtureRequest) -> Any:
    return conftest_of(request)


def test_an_answer_comes_whole(ask: Ask, server: Any) -> None:
    answer = ask(server.address)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("Hello.", (10, 11), "stop")
    assert answer.accepted.decode_worker == "decode-0"
    assert answer.accepted.seed == 7
    assert answer.usage == penstock.Usage(prompt_tokens=3, cached_tokens=2, completion_tokens=2)
    assert answer.timeline.total_seconds == pytest.approx(0.02)


def test_every_option_reaches_the_server(ask: Ask, server: Any) -> None:
    ask(
        server.address,
        None,
        messages=[{"role": "system", "content": "Be brief."}, ("user", "Hi")],
        temperature=0.0,
        top_k=0,
        seed=2**63,
        logit_bias={5: -1.0},
        bad_token_ids=[9],
        bad_words=["damn", "darn it"],
        spaces_between_special_tokens=True,
        max_tokens=0,
        stop="\n",
        stop_token_ids=(3, 4),
        logprobs=0,
        n=2,
        priority=-1,
        request_id="mine",
        cache_scope="s",
        service_class="batch",
        session_key="talk",
        ttft_budget=1.5,
        itl_budget=0.05,
    )
    request = server.requests[0]
    assert [(m.role, m.content) for m in request.chat.messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
    ]
    # Zero means something: it must not be taken for left out.
    assert request.sampling.HasField("temperature")
    assert request.sampling.HasField("top_k")
    assert request.stop.HasField("max_tokens")
    assert request.logprobs.HasField("top")
    assert not request.logprobs.HasField("prompt_top")
    assert not request.sampling.HasField("top_p")
    assert request.sampling.seed == 2**63
    assert dict(request.sampling.logit_bias) == {5: -1.0}
    assert list(request.stop.stop_strings) == ["\n"]
    assert list(request.sampling.bad_words) == ["damn", "darn it"]
    assert request.stop.spaces_between_special_tokens
    assert (request.n, request.priority, request.request_id) == (2, -1, "mine")
    assert (request.service_class, request.session_key) == ("batch", "talk")
    assert request.ttft_budget.ToTimedelta() == timedelta(seconds=1.5)
    assert request.itl_budget.ToMilliseconds() == 50


def test_token_ids_are_a_prompt_even_when_empty(ask: Ask, server: Any) -> None:
    ask(server.address, None, token_ids=[])
    assert server.requests[0].WhichOneof("prompt") == "token_ids"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"token_ids": [1]}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"prompt": None, "token_ids": [-5]}, "token_ids"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"stop": [1]}, "stop"),
        ({"temperatur": 1.0}, "temperatur"),
        ({"ttft_budget": float("inf")}, "ttft_budget"),
    ],
)
def test_what_cannot_be_sent_names_its_field(
    ask: Ask, server: Any, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(penstock.InvalidRequestError) as caught:
        ask(server.address, **options)
    assert caught.value.field == field
    assert server.requests == []


def test_a_stream_without_its_last_message_is_incomplete(ask: Ask, server: Any, steps: Any) -> None:
    server.steps = [lambda _: iter([steps.accepted()])]
    with pytest.raises(penstock.IncompleteStreamError) as caught:
        ask(server.address)
    assert caught.value.tokens_emitted == 1


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        ("INVALID_ARGUMENT", "INVALID_REQUEST", penstock.InvalidRequestError),
        ("UNIMPLEMENTED", "UNSUPPORTED_FEATURE", penstock.UnsupportedFeatureError),
        ("NOT_FOUND", "UNKNOWN_MODEL", penstock.UnknownModelError),
        ("ALREADY_EXISTS", "DUPLICATE_REQUEST", penstock.DuplicateRequestError),
        ("RESOURCE_EXHAUSTED", "", penstock.QuotaError),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", penstock.DeadlineExceededError),
        ("ABORTED", "STREAM_INTERRUPTED", penstock.StreamInterruptedError),
        ("INTERNAL", "INTERNAL", penstock.InternalError),
        ("DATA_LOSS", "", penstock.PenstockError),
    ],
)
def test_a_status_becomes_its_error(
    ask: Ask, server: Any, steps: Any, code: str, reason: str, kind: type[Exception]
) -> None:
    server.steps = [
        steps.refuses(
            grpc.StatusCode[code], reason, "It is so.", metadata={"phase": "queue", "error_id": "e"}
        )
    ]
    with pytest.raises(penstock.PenstockError) as caught:
        ask(server.address)
    assert type(caught.value) is kind
    assert caught.value.message == "It is so."
    assert caught.value.code is grpc.StatusCode[code]
    assert len(server.requests) == 1  # none of these is sent again
    if reason:
        assert caught.value.metadata["error_id"] == "e"


def test_a_field_violation_names_the_field(ask: Ask, server: Any, steps: Any) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="sampling.top_p")
    detail = error_details_pb2.BadRequest(field_violations=[violation])
    code = grpc.StatusCode.INVALID_ARGUMENT
    server.steps = [steps.refuses(code, "INVALID_REQUEST", details=(detail,))]
    with pytest.raises(penstock.InvalidRequestError) as caught:
        ask(server.address)
    assert caught.value.field == "sampling.top_p"


def test_shed_requests_are_sent_again_with_the_same_id(ask: Ask, server: Any, steps: Any) -> None:
    shed = steps.refuses(UNAVAILABLE, "OVERLOADED", pushback="1")
    server.steps = [shed, shed, steps.answers]
    assert ask(server.address).text == "Hello."
    assert len({request.request_id for request in server.requests}) == 1


def test_the_third_refusal_is_final(ask: Ask, server: Any, steps: Any) -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(nanos=2_000_000))
    server.steps = [steps.refuses(UNAVAILABLE, "OVERLOADED", details=(retry,))]
    with pytest.raises(penstock.OverloadedError) as caught:
        ask(server.address)
    assert caught.value.retry_after == pytest.approx(0.002)
    assert len(server.requests) == 3


def test_a_negative_pushback_forbids_the_retry(ask: Ask, server: Any, steps: Any) -> None:
    server.steps = [steps.refuses(UNAVAILABLE, "DRAINING", pushback="-1")]
    with pytest.raises(penstock.OverloadedError):
        ask(server.address)
    assert len(server.requests) == 1


def test_nothing_is_retried_once_a_token_came(ask: Ask, server: Any, steps: Any) -> None:
    server.steps = [steps.refuses(UNAVAILABLE, after_first=True)]
    with pytest.raises(penstock.StreamInterruptedError) as caught:
        ask(server.address)
    assert caught.value.tokens_emitted == 1
    assert len(server.requests) == 1


def test_a_retry_that_the_deadline_forbids_is_not_waited_for(
    ask: Ask, server: Any, steps: Any
) -> None:
    server.steps = [steps.refuses(UNAVAILABLE, "NO_WORKER", pushback="60000")]
    with pytest.raises(penstock.NoWorkerError):
        ask(server.address, timeout=5.0)


def test_the_timeout_travels(ask: Ask, server: Any) -> None:
    ask(server.address, timeout=12.0)
    assert 10.0 < server.timeouts[0] < 12.1


def test_an_unreachable_cluster_says_so(ask: Ask) -> None:
    with pytest.raises(penstock.UnreachableError, match=r"127\.0\.0\.1:1"):
        ask("127.0.0.1:1", waits={"connect_timeout": 0.1})


def test_leaving_the_block_cancels_the_request(server: Any) -> None:
    server.steps = [server.holds]
    with Client(server.address) as client, client.generate("Hi") as stream:
        assert next(stream).text == "Hel"
        assert stream.accepted is not None
    assert server.cancelled.wait(5)
    with pytest.raises(penstock.RequestCancelledError):
        next(stream)


async def test_leaving_the_async_block_cancels_the_request(server: Any) -> None:
    server.steps = [server.holds]
    async with AsyncClient(server.address) as client:
        async with client.generate("Hi") as stream:
            assert (await anext(stream)).text == "Hel"
        assert await asyncio.to_thread(server.cancelled.wait, 5)
        with pytest.raises(penstock.RequestCancelledError):
            await anext(stream)


async def test_cancelling_the_reader_cancels_the_request(server: Any) -> None:
    server.steps = [server.holds]
    async with AsyncClient(server.address) as client:
        stream = client.generate("Hi")
        await anext(stream)
        reader = asyncio.create_task(stream.result())
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert await asyncio.to_thread(server.cancelled.wait, 5)


async def test_a_stream_closed_under_its_reader_ends_it(server: Any) -> None:
    server.steps = [server.holds]
    async with AsyncClient(server.address) as client:
        stream = client.generate("Hi")
        await anext(stream)
        reader = asyncio.create_task(stream.result())
        await asyncio.sleep(0)
        stream.close()
        with pytest.raises(penstock.RequestCancelledError):
            await reader


def test_text_and_models_by_the_blocking_client(server: Any) -> None:
    with Client(server.address) as client:
        assert client.tokenize("a bb ccc") == [1, 2, 3]
        assert client.detokenize([1, 2]) == "x xx"
        assert client.models()[0].context_length == 2048
        assert client.model().name == "fake"


async def test_text_and_models_by_the_async_client(server: Any, steps: Any) -> None:
    async with AsyncClient(server.address) as client:
        assert await client.tokenize("a bb ccc") == [1, 2, 3]
        assert await client.detokenize([1, 2]) == "x xx"
        assert (await client.models())[0].context_length == 2048
        assert (await client.model()).name == "fake"
        server.steps = [steps.refuses(grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")]
        with pytest.raises(penstock.UnknownModelError):
            await client.tokenize("a", model="b")


def test_choices_are_told_apart(ask: Ask, server: Any) -> None:
    def two(_: Any) -> Any:
        first = pb.GenerateResponse(accepted=pb.Accepted(request_id="r"))
        first.deltas.add(choice=1, token_ids=[5], text="b")
        first.deltas.add(choice=0, token_ids=[4], text="a")
        last = pb.GenerateResponse(finished=pb.Finished())
        last.finished.choices.add(choice=0, reason=pb.FINISH_REASON_LENGTH)
        last.finished.choices.add(choice=1, reason=pb.FINISH_REASON_STOP, stop_string="b")
        yield first
        yield last

    server.steps = [two]
    answer = ask(server.address, n=2)
    assert [(c.text, c.finish_reason, c.stop_string) for c in answer.choices] == [
        ("a", "length", None),
        ("b", "stop", "b"),
    ]


async def test_an_answer_can_be_awaited(server: Any) -> None:
    async with AsyncClient(server.address) as client:
        answer = await client.generate("Hi")
        assert answer.text == "Hello."
        stream = client.generate("Hi")
        first = await anext(stream)
        assert (first.text, (await stream).text) == ("Hel", "Hello.")


@pytest.mark.parametrize("token_ids", [[-1], [2**32], ["x"]])
async def test_ids_that_no_message_holds_are_refused(server: Any, token_ids: list[Any]) -> None:
    with Client(server.address) as client:
        with pytest.raises(penstock.InvalidRequestError, match="'token_ids' cannot be sent"):
            client.detokenize(token_ids)
        with pytest.raises(penstock.InvalidRequestError, match="'text' cannot be sent"):
            client.tokenize("\ud800")
        with pytest.raises(penstock.InvalidRequestError, match="'model' cannot be sent"):
            client.model("\ud800")
    async with AsyncClient(server.address) as client:
        with pytest.raises(penstock.InvalidRequestError, match="'token_ids' cannot be sent"):
            await client.detokenize(token_ids)
