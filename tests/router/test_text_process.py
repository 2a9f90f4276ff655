"""Large texts have a process of their own: the same tokens, and it ends with who asked."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.router_requests import long_checkpoint
from cluster.errors import InvalidRequest, Overloaded
from cluster.types import ChatMessage
from router.config import RouterConfig
from router.front.prompt import ChatPrompt, TextPrompt
from router.front.text import Text
from router.front.text_child import TextKind
from router.front.text_codec import tokenized_from_bytes
from router.front.text_lanes import TextLanes, is_small

pytestmark = pytest.mark.slow

LARGE = TextPrompt(text="The quick brown fox. 你好 🙂\n" * 5_000)
HUGE = TextPrompt(text="The quick brown fox. " * 100_000)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    checkpoint = long_checkpoint(tmp_path_factory.mktemp("text"))
    config = RouterConfig(checkpoint=checkpoint, model="m", secrets_file=checkpoint)
    return Text.load(config, b"secret")


@pytest.fixture
async def lanes(text: Text) -> AsyncIterator[TextLanes]:
    lanes = TextLanes(text)
    yield lanes
    await lanes.close()
    assert lanes.process.pid is None


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_the_tokens_are_those_of_a_thread(text: Text, lanes: TextLanes) -> None:
    messages = tuple(
        ChatMessage("assistant" if n % 2 else "user", f"Nu\u0308mber {n}. " * 9) for n in range(200)
    )
    closed = ChatPrompt(messages=messages, add_generation_prompt=False)
    bare = TextPrompt(text=LARGE.text, add_special_tokens=False)
    for prompt in (LARGE, bare, ChatPrompt(messages=messages), closed):
        assert not is_small(prompt)
        tokenized = tokenized_from_bytes(await lanes.tokenized(prompt))
        assert list(tokenized) == text.tokenized(prompt)
    assert lanes.process.pid is not None


async def test_the_text_is_that_of_a_thread(text: Text, lanes: TextLanes) -> None:
    ids = text.tokenized(LARGE)
    assert len(ids) > 20_000
    for skip in (True, False):
        answer = await lanes.detokenized(ids, skip_special_tokens=skip)
        assert text.tokenizer.decode(ids, skip_special_tokens=skip).encode() in answer
    with pytest.raises(InvalidRequest, match="not in the vocabulary") as caught:
        await lanes.detokenized([*ids, 1 << 30], skip_special_tokens=True)
    assert caught.value.field == f"token_ids[{len(ids)}]"


async def test_what_a_template_refuses_is_said(lanes: TextLanes) -> None:
    messages = (ChatMessage("nobody", "x" * 100_000),)
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="Roles are system, user and assistant"):
            await lanes.tokenized(ChatPrompt(messages=messages))


async def test_a_call_given_up_frees_the_process_at_once(lanes: TextLanes) -> None:
    await lanes.tokenized(LARGE)
    pid = lanes.process.pid
    assert pid is not None
    calls = [asyncio.create_task(lanes.tokenized(HUGE)) for _ in range(8)]
    await asyncio.sleep(0.05)
    begin = time.monotonic()
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    async with asyncio.timeout(5):
        while is_running(pid):  # noqa: ASYNC110 - another process, seen from outside
            await asyncio.sleep(0.01)
    await lanes.tokenized(LARGE)
    print(f"served again after {time.monotonic() - begin:.2f} s")
    assert lanes.process.pid not in (None, pid)


async def test_a_process_that_is_killed_costs_its_caller_a_retry(lanes: TextLanes) -> None:
    call = asyncio.create_task(lanes.tokenized(HUGE))
    async with asyncio.timeout(10):
        while lanes.process.pid is None:  # noqa: ASYNC110 - until it has been started
            await asyncio.sleep(0.01)
    os.kill(lanes.process.pid, signal.SIGKILL)
    with pytest.raises(Overloaded, match="send the request again"):
        await call
    await lanes.tokenized(LARGE)


async def test_a_checkpoint_that_has_changed_is_not_used(tmp_path: Path) -> None:
    checkpoint = long_checkpoint(tmp_path)
    config = RouterConfig(checkpoint=checkpoint, model="m", secrets_file=checkpoint)
    lanes = TextLanes(Text.load(config, b"secret"))
    content = (checkpoint / "tokenizer.json").read_text()
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer.json").write_text(content + " ")
    with pytest.raises(Overloaded):
        await lanes.process.call(TextKind.TOKENIZE, 0, bytes)
    await lanes.close()
