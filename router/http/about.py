"""What the door says of itself: the model, the version, how it is; and texts to tokens and back."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from cluster.metrics.server import Pages
from cluster.release import version
from cluster.rpc import parsed
from penstock.v1 import inference_pb2 as pb
from router.front.text import Text
from router.front.text_lanes import TextLanes
from router.front.validation import check_detokenize, check_model, check_tokenize
from router.front.wire_bounds import check_wire
from router.http.call import HttpCall, Listening
from router.http.errors import Header
from router.http.intake import BodyIntake
from router.http.openapi import openapi_page
from router.http.reading import BodyKind
from router.http.replies import (
    DetokenizeReply,
    ModelCard,
    ModelList,
    StateReply,
    VersionReply,
)
from router.http.typed_json import encode

_SLICE: Final = 1 << 14  # ids that are written at once: a millisecond
_AGAIN: Final[Header] = (b"retry-after", b"1")


@dataclass(eq=False, kw_only=True)
class About:
    text: Text
    lanes: TextLanes
    intake: BodyIntake
    is_serving: Callable[[], bool]
    pages: Pages
    created: int = field(default_factory=lambda: int(time.time()))

    async def models(self, call: HttpCall) -> None:
        await call.answer(200, encode(ModelList(data=[self._card])))

    async def model(self, call: HttpCall) -> None:
        """Raises UnknownModel."""
        check_model(call.scope["path_params"]["model"], self.text.info)
        await call.answer(200, encode(self._card))

    async def version(self, call: HttpCall) -> None:
        await call.answer(200, encode(VersionReply(version())))

    async def openapi(self, call: HttpCall) -> None:
        await call.answer(200, self._page)

    async def livez(self, call: HttpCall) -> None:
        await call.answer(200, encode(StateReply("alive")))

    async def readyz(self, call: HttpCall) -> None:
        if self.is_serving():
            await call.answer(200, encode(StateReply("ready")))
        else:
            reason = "No decode worker serves, or this router drains or has just started."
            await call.answer(503, encode(StateReply("not ready", reason)), _AGAIN)

    async def metrics(self, call: HttpCall) -> None:
        await self._show("/metrics", call)

    async def targets(self, call: HttpCall) -> None:
        await self._show("/metrics/targets", call)

    async def _show(self, path: str, call: HttpCall) -> None:
        page = self.pages[path]
        await call.answer_as(page.content_type, await page.text())

    async def tokenize(self, call: HttpCall) -> None:
        asked = await self.intake.asked(BodyKind.TOKENIZE, call)
        [message] = asked.messages
        info, limits = self.text.info, self.text.limits
        check_wire(message, pb.TokenizeRequest, info, limits)
        request: pb.TokenizeRequest = parsed(pb.TokenizeRequest, message)  # type: ignore[assignment]
        prompt = check_tokenize(request, info, limits)
        async with Listening(call):
            response = await self.lanes.tokenized(prompt)
            ids = pb.TokenizeResponse.FromString(response).token_ids
            await call.begin_json()
            for part in _tokens(ids, info.context_length):
                await call.write(part)
            await call.end()

    async def detokenize(self, call: HttpCall) -> None:
        asked = await self.intake.asked(BodyKind.DETOKENIZE, call)
        [message] = asked.messages
        check_wire(message, pb.DetokenizeRequest, self.text.info, self.text.limits)
        request: pb.DetokenizeRequest = parsed(pb.DetokenizeRequest, message)  # type: ignore[assignment]
        ids = check_detokenize(request, self.text.info, self.text.limits)
        is_default = not request.HasField("skip_special_tokens")
        async with Listening(call):
            response = await self.lanes.detokenized(
                ids, skip_special_tokens=is_default or request.skip_special_tokens
            )
            text = pb.DetokenizeResponse.FromString(response).text
            await call.answer(200, encode(DetokenizeReply(text)))

    @cached_property
    def _page(self) -> bytes:
        return openapi_page(version())

    @property
    def _card(self) -> ModelCard:
        info = self.text.info
        return ModelCard(id=info.name, created=self.created, max_model_len=info.context_length)


def _tokens(ids: Sequence[int], context_length: int) -> Iterator[bytes]:
    """One JSON object, a part after another: there may be millions, and others come in between."""
    yield b'{"count":%d,"max_model_len":%d,"tokens":[' % (len(ids), context_length)
    for start in range(0, len(ids), _SLICE):
        comma = b"," if start else b""
        yield comma + encode(list(ids[start : start + _SLICE]))[1:-1]
    yield b"]}"
