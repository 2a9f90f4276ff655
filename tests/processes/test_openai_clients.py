"""A cluster of processes with the model that ships, asked by OpenAI's unmodified clients and by
ours: both doors give the same."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from penstock.aio import AsyncClient
from tests.deploy.served import Served, serving
from tests.docs.pages import blocks

MODEL = "penstock-tiny"
QUESTIONS = ["What does len do?", "What does zip do?", "What is a prefill worker?", "Hi", "héllo"]
NUM_REQUESTS = 60

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("home")) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_of(served), api_key="none", max_retries=0) as client:
        yield client


def base_of(served: Served) -> str:
    return f"http://{served.ready['http']}/v1"


def chat_of(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


def test_a_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    whole = create(model=MODEL, messages=chat_of(QUESTIONS[0]), temperature=0)
    assert whole.choices[0].message.content == "Return the number of items in a container."
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (71, 11)
    assert whole.usage.total_tokens == 82
    again = create(model=MODEL, messages=chat_of(QUESTIONS[0]), temperature=0)
    assert again.usage
    assert again.usage.prompt_tokens_details
    assert again.usage.prompt_tokens_details.cached_tokens == 64
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(create(model=MODEL, messages=chat_of(QUESTIONS[0]), temperature=0, **options))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 11


def test_the_client_gathers_a_stream_by_itself(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=chat_of(QUESTIONS[0])) as stream:
        for event in stream:
            assert event.type
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content
    assert whole.choices[0].finish_reason in ("stop", "length")


def test_logprobs_are_those_of_the_tokens_that_are_shown(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL,
        messages=chat_of(QUESTIONS[0]),
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    [choice] = whole.choices
    assert choice.logprobs
    tokens = choice.logprobs.content or []
    assert "".join(token.token for token in tokens[:-1]) == choice.message.content
    assert tokens[-1].token.startswith("<")  # the model's own end
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob  # greedy
        assert bytes(token.bytes or []).decode() == token.token


def test_an_echo_brings_the_prompt_and_what_it_was_worth(client: openai.OpenAI) -> None:
    """As evaluation harnesses ask."""
    prompt = "What does len do?"
    whole = client.completions.create(
        model=MODEL, prompt=prompt, echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    [choice] = whole.choices
    logprobs = choice.logprobs
    assert logprobs
    assert choice.text.startswith(prompt)
    assert whole.usage
    num = whole.usage.prompt_tokens + 1
    assert logprobs.tokens
    assert logprobs.token_logprobs
    assert logprobs.text_offset
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == num
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert choice.text[offset:].startswith(token) or offset == len(choice.text)


def test_several_choices_of_several_prompts(client: openai.OpenAI) -> None:
    prompts = ["What does", "Return the"]
    asked: Any = {"model": MODEL, "prompt": prompts, "n": 2, "max_tokens": 4, "seed": 5}
    whole = client.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    streamed: dict[int, str] = {}
    finished = {}
    for chunk in client.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + choice.text
            finished[choice.index] = choice.finish_reason
    assert streamed == {choice.index: choice.text for choice in whole.choices}
    assert finished == {choice.index: choice.finish_reason for choice in whole.choices}
    alone = client.completions.create(**{**asked, "prompt": prompts[1]})
    assert [c.text for c in alone.choices] == [c.text for c in whole.choices[2:]]


def test_stop_strings_end_an_answer_and_are_named(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=chat_of(QUESTIONS[0]), temperature=0, stop=[" of items"]
    )
    [choice] = whole.choices
    assert (choice.message.content, choice.finish_reason) == ("Return the number", "stop")
    assert choice.model_extra == {"stop_reason": " of items"}


def test_a_seed_gives_the_same_again(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": "What does", "max_tokens": 12, "temperature": 1.5}
    create = client.completions.create
    texts = [create(seed=seed, **asked).choices[0].text for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_errors_are_openais_by_class(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        create(model="gpt-4o", messages=chat_of("a"))
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="temperature is 11"):
        create(model=MODEL, messages=chat_of("a"), temperature=11)
    with pytest.raises(openai.BadRequestError, match="'tools' is not supported"):
        create(
            model=MODEL,
            messages=chat_of("a"),
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    with pytest.raises(openai.BadRequestError, match="context"):
        create(model=MODEL, messages=chat_of("a " * 40_000))


async def test_both_doors_give_the_same(served: Served) -> None:
    """Tokens, text, usage, finish reasons; at once, in any order."""
    async with (
        AsyncClient(served.address) as ours,
        openai.AsyncOpenAI(base_url=base_of(served), api_key="none") as theirs,
    ):
        places = asyncio.Semaphore(8)

        async def one(number: int) -> None:
            async with places:
                await compare(ours, theirs, number)

        async with asyncio.TaskGroup() as tasks:
            for number in range(NUM_REQUESTS):
                tasks.create_task(one(number))


async def compare(ours: AsyncClient, theirs: openai.AsyncOpenAI, number: int) -> None:
    question = QUESTIONS[number % len(QUESTIONS)]
    options: dict[str, Any] = {
        "seed": number,
        "max_tokens": 4 + number % 30,
        "temperature": (0.0, 0.8, 1.5)[number % 3],
        "stop": [" the"] if number % 7 == 0 else None,
    }
    answer = await ours.generate(messages=[("user", question)], timeout=60, **options).result()
    expected = (answer.text, list(answer.token_ids), answer.finish_reason)
    used = (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    asked: dict[str, Any] = {"model": MODEL, "messages": chat_of(question), **options}
    asked["extra_body"] = {"return_token_ids": True}
    if number % 2:
        whole = await theirs.chat.completions.create(**asked)
        [choice] = whole.choices
        ids = choice.model_extra["token_ids"]  # type: ignore[index]
        got = (choice.message.content, ids, choice.finish_reason)
        usage = whole.usage
    else:
        got, usage = await streamed(theirs, asked)
    assert got == expected, json.dumps(asked)
    assert usage
    assert (usage.prompt_tokens, usage.completion_tokens) == used


async def streamed(theirs: openai.AsyncOpenAI, asked: dict[str, Any]) -> tuple[Any, Any]:
    more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    text, ids, reason, usage = "", [], None, None
    async for chunk in await theirs.chat.completions.create(**asked, **more):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            ids += (choice.model_extra or {}).get("token_ids") or []
            reason = choice.finish_reason or reason
    return (text, ids, reason), usage


def test_a_response_whole_streamed_and_gathered(client: openai.OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input=QUESTIONS[0], temperature=0)
    assert whole.output_text == "Return the number of items in a container."
    assert (whole.status, whole.incomplete_details) == ("completed", None)
    assert whole.usage
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (71, 11)
    again = client.responses.create(model=MODEL, input=QUESTIONS[0], temperature=0)
    assert again.usage
    assert again.usage.input_tokens_details.cached_tokens == 64
    text, last = "", None
    for event in client.responses.create(
        model=MODEL, input=QUESTIONS[0], temperature=0, stream=True
    ):
        last = event
        if event.type == "response.output_text.delta":
            text += event.delta
    assert text == whole.output_text
    assert last
    assert last.type == "response.completed"
    assert last.response.output_text == text
    with client.responses.stream(model=MODEL, input=QUESTIONS[0], temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == text


def test_what_the_page_shows_runs_when_it_is_pasted(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    chat, response = [
        block for block in blocks() if (block.page, block.language) == ("docs/http.md", "python")
    ]
    for block in (chat, response):
        code = block.text.replace("http://127.0.0.1:8000/v1", base_of(served))
        exec(compile(code, block.page, "exec"), {})
    assert capsys.readouterr().out.startswith("Return the number of items in a container.")


def test_logprobs_of_a_response_are_a_chats(client: openai.OpenAI) -> None:
    included: Any = ["message.output_text.logprobs"]
    whole = client.responses.create(
        model=MODEL, input=QUESTIONS[0], temperature=0, top_logprobs=2, include=included
    )
    same = client.chat.completions.create(
        model=MODEL, messages=chat_of(QUESTIONS[0]), temperature=0, logprobs=True, top_logprobs=2
    )
    [part] = whole.output[0].content  # type: ignore[union-attr]
    assert same.choices[0].logprobs
    shown = [token.to_dict() for token in part.logprobs]  # type: ignore[union-attr]
    assert shown == [token.to_dict() for token in same.choices[0].logprobs.content or []]
    assert whole.top_logprobs == 2


async def test_a_response_is_what_a_chat_is(served: Served) -> None:
    """Tokens, text, usage and why it ended; whole and streamed; at once, in any order."""
    async with openai.AsyncOpenAI(base_url=base_of(served), api_key="none") as client:
        places = asyncio.Semaphore(8)

        async def one(number: int) -> None:
            async with places:
                await compare_response(client, number)

        async with asyncio.TaskGroup() as tasks:
            for number in range(NUM_REQUESTS // 2):
                tasks.create_task(one(number))


async def compare_response(client: openai.AsyncOpenAI, number: int) -> None:
    question = QUESTIONS[number % len(QUESTIONS)]
    max_tokens = 4 + number % 30
    sampling: dict[str, Any] = {"temperature": (0.0, 0.8, 1.5)[number % 3], "top_p": 0.9}
    extra = {"return_token_ids": True, "seed": number}
    chat = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "system", "content": "Be short."}, *chat_of(question)],
        max_tokens=max_tokens,
        extra_body=extra,
        **sampling,
    )
    asked: dict[str, Any] = {"instructions": "Be short.", "input": chat_of(question), **sampling}
    asked |= {"model": MODEL, "max_output_tokens": max_tokens, "extra_body": extra}
    if number % 2:
        response = await client.responses.create(**asked)
    else:
        *_, last = [event async for event in await client.responses.create(**asked, stream=True)]
        response = last.response
    [choice] = chat.choices
    [message] = response.output
    [part] = message.content
    got = (part.text, part.model_extra["token_ids"], response.status)
    status = {"stop": "completed", "length": "incomplete"}[choice.finish_reason]
    expected = (choice.message.content, choice.model_extra["token_ids"], status)  # type: ignore[index]
    assert got == expected, json.dumps(asked)
    assert chat.usage
    used = (chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.total_tokens)
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == used


async def test_who_leaves_frees_every_block(served: Served) -> None:
    """On both workers, whether the answer is streamed or not."""
    async with openai.AsyncOpenAI(base_url=base_of(served), api_key="none") as client:
        asked: dict[str, Any] = {"model": MODEL, "messages": chat_of(QUESTIONS[0]), "n": 16}
        asked["extra_body"] = {"ignore_eos": True}
        stream = await client.chat.completions.create(**asked, stream=True)
        await anext(aiter(stream))
        await stream.close()
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=0.05, max_retries=0).chat.completions.create(**asked)
        given: dict[str, Any] = {"model": MODEL, "input": QUESTIONS[0]}
        given["extra_body"] = {"ignore_eos": True}
        events = await client.responses.create(**given, stream=True)
        await anext(aiter(events))
        await events.close()
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(is_idle, served):  # noqa: ASYNC110 - of processes
            await asyncio.sleep(0.05)


def is_idle(served: Served) -> bool:
    loads = [worker["load"] for worker in served.status().values()]
    return all(not load.get("num_running") and not load.get("num_waiting") for load in loads)
