"""Clients that ask for as much as they may, in a process of their own: see `LOADS`.

    python -m tests.router.large_load ADDRESS LOAD SECONDS

Prints a line when the first wave is on its way, and how the calls ended as the last one.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any, NamedTuple

import grpc
import grpc.aio

from penstock.v1 import inference_pb2 as pb

LARGE = 4 << 20  # bytes of text that a request may have
LONG = 65_000  # tokens of a prompt
_WORDS = "The quick brown fox jumps over the lazy dog, and then it does so again. "
_PIECE = "a wordy answer " * 136


class Load(NamedTuple):
    """So many calls at a time, each cancelled after a while where that is said."""

    rpc: str
    request: Any
    num_calls: int
    cancel_after_s: float | None = None


def _text(num_bytes: int) -> str:
    return (_WORDS * (num_bytes // len(_WORDS) + 1))[:num_bytes]


def _chat(num_messages: int, content: str) -> pb.Chat:
    roles = ("user", "assistant")
    return pb.Chat(
        messages=[pb.ChatMessage(role=roles[n % 2], content=content) for n in range(num_messages)]
    )


LOADS = {
    "tokenize": lambda: Load("Tokenize", pb.TokenizeRequest(text=_text(LARGE)), 256),
    "tokenize, cancelled": lambda: Load(
        "Tokenize", pb.TokenizeRequest(text=_text(LARGE // 2)), 32, cancel_after_s=0.3
    ),
    "tokenize, 2 MiB": lambda: Load("Tokenize", pb.TokenizeRequest(text=_text(LARGE // 2)), 256),
    "detokenize, millions": lambda: Load(
        "Detokenize", pb.DetokenizeRequest(token_ids=[300] * 2_500_000), 16
    ),
    "detokenize, a context": lambda: Load(
        "Detokenize", pb.DetokenizeRequest(token_ids=[300] * (1 << 17)), 64
    ),
    "chat, one huge message": lambda: Load(
        "Tokenize", pb.TokenizeRequest(chat=_chat(1, _text(LARGE // 2))), 64
    ),
    "chat, many messages, cancelled": lambda: Load(
        "Tokenize", pb.TokenizeRequest(chat=_chat(2048, _PIECE[:1000])), 32, cancel_after_s=0.3
    ),
    "generate, long text": lambda: Load(
        "Generate", pb.GenerateRequest(text=_text(3 * LONG), stop={"max_tokens": 1}), 32
    ),
    "generate, long ids": lambda: Load(
        "Generate",
        pb.GenerateRequest(
            token_ids={"ids": [n % 2000 for n in range(LONG)]}, stop={"max_tokens": 1}
        ),
        32,
    ),
    "short texts just below large": lambda: Load(
        "Tokenize", pb.TokenizeRequest(text=_text(32 << 10)), 256
    ),
}


async def _ask(call: Any, cancel_after_s: float | None) -> tuple[str, float]:
    """How it ended, and after how many seconds the next may follow."""
    try:
        async with asyncio.timeout(cancel_after_s):
            if hasattr(call, "read"):
                async for _ in call:
                    pass
            else:
                await call
    except TimeoutError:
        call.cancel()
        return "CANCELLED", 1.0
    except grpc.aio.AioRpcError as error:
        hint = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms", 0)
        return str(error.code().name), float(hint) / 1e3
    return "OK", 0.0


async def run(address: str, name: str, seconds: float) -> Counter[str]:
    """Waves of calls until the time is over; the last wave is cancelled then."""
    load, ended = LOADS[name](), Counter[str]()
    until = time.monotonic() + seconds
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        path, data = f"/penstock.v1.Inference/{load.rpc}", load.request.SerializeToString()
        is_stream = load.rpc == "Generate"
        method = channel.unary_stream(path) if is_stream else channel.unary_unary(path)

        async def client() -> None:
            while (left_s := until - time.monotonic()) > 0:
                limit_s = min(left_s, load.cancel_after_s or left_s)
                how, again_s = await _ask(method(data), limit_s)
                ended[how] += 1
                if how == "INVALID_ARGUMENT":
                    break  # it would be again
                await asyncio.sleep(min(again_s, max(0.0, until - time.monotonic())))

        clients = [asyncio.create_task(client()) for _ in range(load.num_calls)]
        print("begun", flush=True)
        await asyncio.gather(*clients)
    return ended


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(sys.argv[1], sys.argv[2], float(sys.argv[3])))))
