"""Asks a cluster as a program over LangChain does: by chats, by responses and by completions, whole
and streamed, alone and at once. Runs in LangChain's own environment.

    python langchain_chat.py URL MODEL
"""

import asyncio
import sys
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from openai import BadRequestError
from pydantic import BaseModel

QUESTION = [SystemMessage("You answer briefly."), HumanMessage("What does len do?")]
NUM_AT_ONCE = 8


class Builtin(BaseModel):
    """What an answer would have to be."""

    name: str


async def ask(chat: ChatOpenAI) -> None:
    whole = chat.invoke(QUESTION)
    parts: Any = None
    for chunk in chat.stream(QUESTION):
        parts = chunk if parts is None else parts + chunk
    assert parts.text == whole.text != "", (parts.text, whole.text)
    assert parts.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"] > 0
    answers = await chat.abatch([QUESTION] * NUM_AT_ONCE)
    assert {answer.text for answer in answers} == {whole.text}
    cut = chat.invoke(QUESTION, max_tokens=2)
    assert cut.usage_metadata["output_tokens"] == 2


def refused(chat: ChatOpenAI) -> str:
    """What is not supported is refused by name, not answered wrongly."""
    try:
        chat.with_structured_output(Builtin, method="function_calling").invoke(QUESTION)
    except BadRequestError as error:
        return str(error.param)
    raise AssertionError("A request with tools was answered.")


async def main(url: str, model: str) -> None:
    given: Any = {"base_url": url, "api_key": "none", "model": model, "temperature": 0}
    for is_response in (False, True):
        chat = ChatOpenAI(use_responses_api=is_response, stream_usage=True, **given)
        await ask(chat)
        assert refused(chat) == "tools"
    texts = OpenAI(max_tokens=8, **given)
    assert "".join(texts.stream("What does")) == texts.invoke("What does")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
