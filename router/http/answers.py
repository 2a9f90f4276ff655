"""Answers on their way to the caller: messages of the pipeline in, one JSON body or SSE out.

What ends an answer is sent with its last message, while the pipeline still knows the request: so
whoever drains waits for it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

from penstock.v1 import inference_pb2 as pb
from router.callers.key_file import ApiKey
from router.http.asked import Asked
from router.http.call import HttpCall
from router.http.forms import Form
from router.http.replies import PromptTokensDetails, UsageReply
from router.http.resumable import event_ids
from router.http.typed_json import encode

PING_S: Final = 10.0  # so long a stream says nothing before it says that it lives
_PING: Final = b": ping\n\n"


class Sink(Protocol):
    """Where the answers to all prompts of one request go."""

    async def take(self, part: "PromptCaller", response: pb.GenerateResponse) -> None: ...


class PromptCaller:
    """Who asked, as the pipeline sees it (`router.caller.Caller`), for one prompt."""

    __slots__ = ("_call", "_sink", "first_choice", "phase", "prompt", "tokens_emitted")

    def __init__(self, call: HttpCall, sink: Sink, *, first_choice: int, prompt: str = "") -> None:
        self._call = call
        self._sink = sink
        self.first_choice = first_choice
        self.prompt = prompt  # where it is echoed
        self.phase = "request"
        self.tokens_emitted = 0

    @property
    def key(self) -> ApiKey:
        return self._call.key

    @property
    def remaining_s(self) -> float | None:
        return self._call.remaining_s

    async def send_metadata(self, *metadata: tuple[str, str]) -> None:
        """The head of the answer has the request id already."""

    async def send(self, message: bytes) -> None:
        await self._sink.take(self, pb.GenerateResponse.FromString(message))


class _UsageSum:
    """Adds up over prompts."""

    def __init__(self, num_prompts: int) -> None:
        self._sum = pb.Usage()
        self._num_left = num_prompts

    def add(self, usage: pb.Usage) -> bool:
        """Tells whether these were the last."""
        self._sum.prompt_tokens += usage.prompt_tokens
        self._sum.cached_tokens += usage.cached_tokens
        self._sum.completion_tokens += usage.completion_tokens
        self._num_left -= 1
        return not self._num_left

    @property
    def reply(self) -> UsageReply:
        usage = self._sum
        return UsageReply(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.prompt_tokens + usage.completion_tokens,
            PromptTokensDetails(usage.cached_tokens),
        )


class StreamedAnswer:
    """Each message is written when it comes, each of its pieces in frames of its own."""

    def __init__(
        self, call: HttpCall, form: Form, asked: Asked, next_index: Sequence[int] = ()
    ) -> None:
        """`next_index`: by choice, how many tokens the client has already, where he goes on."""
        call.failure_frame = form.failure
        self._call = call
        self._form = form
        self._num_choices = asked.num_choices
        self._next_index = [*next_index] or [0] * asked.num_choices
        # Whose events are named, for their client to go on behind one; empty: nobody's.
        self._named = event_ids(call.request_id) if next_index else b""
        self._usage = _UsageSum(len(asked.messages))
        self._now = asyncio.get_running_loop().time
        self._written_at = 0.0
        self._is_writing = False

    async def take(self, part: PromptCaller, response: pb.GenerateResponse) -> None:
        frames = [self._name() + self._form.frames(piece) for piece in self._pieces(part, response)]
        is_last = response.HasField("finished") and self._usage.add(response.finished.usage)
        if is_last:
            frames.append(self._form.closing(self._usage.reply))
        if frames:
            await self._write(b"".join(frames), is_last=is_last)

    async def ping(self) -> None:
        """Says that it lives, unless it has just said something, or nobody reads."""
        silent_s = self._now() - self._written_at
        if not self._is_writing and silent_s > PING_S / 2:
            await self._call.begin_stream()
            await self._call.write(_PING)

    def _pieces(self, part: PromptCaller, response: pb.GenerateResponse) -> Iterator[Any]:
        first, form = part.first_choice, self._form
        if response.HasField("accepted"):
            if response.accepted.resume_secret and self._call.resume_key:
                self._named = event_ids(self._call.request_id)
            for choice in range(first, first + self._num_choices):
                if (opening := form.opening(choice, part.prompt, response.accepted)) is not None:
                    yield opening
        for delta in response.deltas:
            if self._named:
                self._next_index[delta.choice] = delta.index + len(delta.token_ids)
            if (piece := form.piece(first + delta.choice, delta)) is not None:
                yield piece
        for finish in response.finished.choices:
            yield form.ending(first + finish.choice, finish)

    def _name(self) -> bytes:
        """Names an event by how many tokens of each choice are there with it."""
        if not self._named:
            return b""
        if self._num_choices == 1:
            return b"%b%d\n" % (self._named, self._next_index[0])
        return b"%b%b\n" % (self._named, b",".join(b"%d" % each for each in self._next_index))

    async def _write(self, data: bytes, *, is_last: bool) -> None:
        self._is_writing = True
        await self._call.begin_stream()
        await (self._call.end(data) if is_last else self._call.write(data))
        self._is_writing = False
        self._written_at = self._now()


class WholeAnswer:
    """Kept until it is whole."""

    def __init__(self, call: HttpCall, form: Form, asked: Asked) -> None:
        self._call = call
        self._form = form
        self._num_choices = asked.num_choices
        self._usage = _UsageSum(len(asked.messages))
        self._pieces: defaultdict[int, list[Any]] = defaultdict(list)
        self._finishes: dict[int, pb.ChoiceFinish] = {}

    async def take(self, part: PromptCaller, response: pb.GenerateResponse) -> None:
        first = part.first_choice
        if response.HasField("accepted"):
            for choice in range(first, first + self._num_choices):
                self._keep(choice, self._form.opening(choice, part.prompt, response.accepted))
        for delta in response.deltas:
            choice = first + delta.choice
            self._keep(choice, self._form.piece(choice, delta))
        for finish in response.finished.choices:
            self._finishes[first + finish.choice] = finish
        if response.HasField("finished") and self._usage.add(response.finished.usage):
            await self._call.answer(200, encode(self._reply()))

    def _keep(self, choice: int, piece: Any) -> None:
        if piece is not None:
            self._pieces[choice].append(piece)

    def _reply(self) -> Any:
        whole = self._form.whole
        choices = [
            whole(choice, self._pieces[choice], finish)
            for choice, finish in sorted(self._finishes.items())
        ]
        return self._form.reply(choices, self._usage.reply)
