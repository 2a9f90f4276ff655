"""`/v1/chat/completions`, `/v1/completions` and `/v1/responses`: a body becomes requests of the
contract, which take the way that gRPC's take, and what comes back becomes one answer.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cluster.rpc import parsed
from penstock.v1 import inference_pb2 as pb
from router.front.reception import Reception
from router.front.text import Text
from router.front.validation import check_attach, check_generate, check_request_id, new_secret
from router.front.wire_bounds import check_wire
from router.http.answers import PING_S, PromptCaller, Sink, StreamedAnswer, WholeAnswer
from router.http.asked import Asked
from router.http.call import REQUEST_ID_KEY, RESUME_KEY, HttpCall, Listening
from router.http.errors import HttpRefusal
from router.http.forms import ChatForm, Form, TextForm
from router.http.intake import BodyIntake
from router.http.reading import BodyKind
from router.http.response_fields import NAMES_IN_RESPONSES
from router.http.response_form import ResponseForm
from router.http.resumable import (
    LAST_EVENT_KEY,
    is_resumable,
    next_index,
    read_resume_key,
    resume_key,
)
from router.http.token_text import TokenTexts, token_texts
from router.request_line import RequestLine
from router.request_trace import traced

_FORMS: Final[Mapping[BodyKind, tuple[str, Callable[..., Form]]]] = {
    BodyKind.CHAT: ("chatcmpl-", ChatForm),
    BodyKind.COMPLETION: ("cmpl-", TextForm),
    BodyKind.RESPONSE: ("resp_", ResponseForm),
}


@dataclass(slots=True, eq=False, kw_only=True)
class HttpGeneration:
    text: Text
    reception: Reception
    intake: BodyIntake
    clock: Callable[[], float]
    ping_s: float = PING_S
    texts: TokenTexts = field(init=False)

    def __post_init__(self) -> None:
        self.texts = token_texts(self.text.tokenizer)

    async def chat(self, call: HttpCall) -> None:
        await self._serve(BodyKind.CHAT, call)

    async def completion(self, call: HttpCall) -> None:
        await self._serve(BodyKind.COMPLETION, call)

    async def response(self, call: HttpCall) -> None:
        call.names = NAMES_IN_RESPONSES
        await self._serve(BodyKind.RESPONSE, call)

    async def resumed(self, call: HttpCall) -> None:
        """Goes on with a stream that was lost, by what its client has kept of it."""
        if call.method == "HEAD":  # it would take the answer from who reads it
            raise HttpRefusal(405, "method_not_allowed", "Ask here by GET.", (b"allow", b"GET"))
        limits, given = self.text.limits, str(call.scope["path_params"]["request_id"])
        with RequestLine(self.clock(), self.clock, self.reception.counts) as line:
            key = read_resume_key(call.header(RESUME_KEY))
            call.request_id = check_request_id(given, limits)
            have = next_index(call.header(LAST_EVENT_KEY), given, key.num_choices)
            request = pb.AttachRequest(request_id=given, resume_secret=key.secret, next_index=have)
            lost, call.resume_key = check_attach(request, limits), key.header()
            form = self._form(key.kind, call, key.asked, key.created)
            streamed = StreamedAnswer(call, form, key.asked, have)
            part = PromptCaller(call, streamed, first_choice=0)
            call.parts = [part]
            async with Listening(call, self.ping_s, streamed.ping):
                await self.reception.attach(lost, part, line)

    async def _serve(self, kind: BodyKind, call: HttpCall) -> None:
        arrived_at, limits = self.clock(), self.text.limits
        asked = await self.intake.asked(kind, call)
        if asked.request_id and not call.header(REQUEST_ID_KEY):
            call.request_id = check_request_id(asked.request_id, limits)
        created, secret = int(time.time()), b""
        form = self._form(kind, call, asked, created)
        if is_resumable(kind, asked):
            secret = new_secret()
            call.resume_key = resume_key(kind, asked, secret, created).header()
        if asked.is_stream:
            streamed = StreamedAnswer(call, form, asked)
            async with Listening(call, self.ping_s, streamed.ping):
                await self._answer(call, asked, streamed, arrived_at, secret)
        else:
            async with Listening(call):
                await self._answer(call, asked, WholeAnswer(call, form, asked), arrived_at)

    def _form(self, kind: BodyKind, call: HttpCall, asked: Asked, created: int) -> Form:
        prefix, form = _FORMS[kind]
        info = self.text.info
        told = {
            "id": prefix + call.request_id,
            "created": created,
            "model": info.name,
            "system_fingerprint": "fp_" + info.model_digest.rpartition(":")[2][:12],
        }
        return form(
            told=told, asked=asked, texts=self.texts, end_token_ids=frozenset(info.end_token_ids)
        )

    async def _answer(
        self, call: HttpCall, asked: Asked, sink: Sink, arrived_at: float, secret: bytes = b""
    ) -> None:
        """Several prompts are as many requests."""
        parts = [
            PromptCaller(call, sink, first_choice=index * asked.num_choices)
            for index in range(len(asked.messages))
        ]
        call.parts = [*parts]
        if len(parts) == 1:
            [message], [part] = asked.messages, parts
            await self._serve_one(call, asked, message, part, call.request_id, arrived_at, secret)
            return
        async with asyncio.TaskGroup() as tasks:
            for index, (message, part) in enumerate(zip(asked.messages, parts, strict=True)):
                request_id = self._numbered(call.request_id, index)
                serving = self._serve_one(call, asked, message, part, request_id, arrived_at)
                tasks.create_task(serving)

    def _numbered(self, request_id: str, index: int) -> str:
        """The first prompt has the caller's id; the others' are no longer than allowed."""
        behind = f"-{index}" if index else ""
        return request_id[: self.text.limits.max_request_id_chars - len(behind)] + behind

    async def _serve_one(
        self,
        call: HttpCall,
        asked: Asked,
        message: bytes,
        part: PromptCaller,
        request_id: str,
        arrived_at: float,
        secret: bytes = b"",
    ) -> None:
        info, limits = self.text.info, self.text.limits
        counts = self.reception.counts
        with RequestLine(arrived_at, self.clock, counts, request_id=request_id) as line:
            if self.reception.tracing is not None:
                line.trace = traced(self.reception.tracing, call.header)
            if line.trace is not None:
                call.told.setdefault(*line.trace.header)  # of several prompts the first one's
            num_bytes = check_wire(message, pb.GenerateRequest, info, limits)
            if num_bytes:
                self.reception.lanes.process.check_room(num_bytes)
            request: pb.GenerateRequest = parsed(pb.GenerateRequest, message)  # type: ignore[assignment]
            request.request_id = request_id
            if num_bytes:
                await asyncio.sleep(0)  # to check it takes a while, too: others come in between
            given = check_generate(request, info, limits, part.key, secret)
            if asked.is_echoed:
                part.prompt = await self._echo(request)
            await self.reception.serve(given, part, line)

    async def _echo(self, request: pb.GenerateRequest) -> str:
        if request.WhichOneof("prompt") == "text":
            return request.text
        ids = list(request.token_ids.ids)
        response = await self.reception.lanes.detokenized(ids, skip_special_tokens=False)
        return pb.DetokenizeResponse.FromString(response).text
