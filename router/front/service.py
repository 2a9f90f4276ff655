"""The public `Inference` service, gRPC's front door: bounds, text, and the way to the reception."""

import time
from collections.abc import Callable

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from cluster.errors import InvalidRequest
from cluster.limits import Limits
from cluster.rpc import Call, Serve
from penstock.v1 import inference_pb2 as pb
from router.front.field_rules import RULES
from router.front.model_info import ModelInfo
from router.front.reception import Reception
from router.front.text import Text
from router.front.validation import (
    check_attach,
    check_detokenize,
    check_generate,
    check_model,
    check_request_id,
    check_tokenize,
)
from router.front.wire_bounds import check_wire
from router.request_line import RequestLine
from router.request_trace import traced

NAME = "penstock.v1.Inference"
REQUEST_ID_KEY = "x-request-id"


class InferenceService:
    def __init__(
        self, text: Text, reception: Reception, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._text = text
        self._lanes = reception.lanes
        self._reception = reception
        self._clock = clock
        self._model = _model(text)

    @property
    def rpcs(self) -> dict[str, Serve]:
        """Gives the RPCs by name; `Route` is not among them, and answers UNIMPLEMENTED."""
        return {
            "Generate": self.generate,
            "Attach": self.attach,
            "Tokenize": self.tokenize,
            "Detokenize": self.detokenize,
            "ListModels": self.list_models,
            "GetModel": self.get_model,
        }

    def check_wire(self, message_type: type[Message], data: bytes) -> None:
        """Checks before a request is parsed whether it may be, and whether there is room for it."""
        num_bytes = check_wire(data, message_type, self._text.info, self._text.limits)
        if num_bytes:
            self._lanes.process.check_room(num_bytes)

    async def generate(self, request: pb.GenerateRequest, call: Call) -> None:
        limits = self._text.limits
        with RequestLine(self._clock(), self._clock, self._reception.counts) as line:
            if self._reception.tracing is not None:
                line.trace = traced(self._reception.tracing, call.metadata)
            told_id = call.metadata(REQUEST_ID_KEY)
            request_id = check_request_id(request.request_id or told_id or "", limits)
            line.request_id = request.request_id = request_id
            given = check_generate(request, self._text.info, limits, call.key)
            # Who told its id as metadata reads it there; all others in `accepted`: a write less.
            echo = ((REQUEST_ID_KEY, request_id),) if told_id else ()
            if line.trace is not None:
                echo = (*echo, line.trace.header)
            await self._reception.serve(given, call, line, echo)

    async def attach(self, request: pb.AttachRequest, call: Call) -> None:
        with RequestLine(self._clock(), self._clock, self._reception.counts) as line:
            lost = check_attach(request, self._text.limits)
            await self._reception.attach(lost, call, line)

    async def tokenize(self, request: pb.TokenizeRequest, call: Call) -> bytes:
        prompt = check_tokenize(request, self._text.info, self._text.limits)
        return await self._lanes.tokenized(prompt)

    async def detokenize(self, request: pb.DetokenizeRequest, call: Call) -> bytes:
        ids = check_detokenize(request, self._text.info, self._text.limits)
        is_default = not request.HasField("skip_special_tokens")
        return await self._lanes.detokenized(
            ids, skip_special_tokens=is_default or request.skip_special_tokens
        )

    async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        if request.page_token:
            raise InvalidRequest("page_token", "There is one page: send no page token.")
        return pb.ListModelsResponse(models=[self._model])

    async def get_model(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        check_model(request.model, self._text.info)
        return pb.GetModelResponse(model=self._model)


def _model(text: Text) -> pb.Model:
    info = text.info
    return pb.Model(
        name=info.name,
        context_length=info.context_length,
        vocab_size=info.vocab_size,
        model_digest=info.model_digest,
        tokenizer_digest=info.tokenizer_digest,
        features=_features(has_chat=info.has_chat_template),
        limits=_limits(text.limits, info),
        end_token_ids=info.end_token_ids,
    )


def _features(*, has_chat: bool) -> list[str]:
    """Every RPC that answers, and every field of a request that is not refused."""
    rpcs = {"Generate", "Attach", "Tokenize", "Detokenize", "ListModels", "GetModel"}
    fields = {path for path, rule in RULES.items() if rule.is_supported}
    fields -= set() if has_chat else {"chat"}
    return sorted(rpcs) + sorted(fields)


def _limits(limits: Limits, info: ModelInfo) -> pb.Limits:
    context_length = info.context_length
    return pb.Limits(
        max_prompt_tokens=min(limits.max_prompt_tokens or context_length, context_length - 1),
        max_output_tokens=min(limits.max_output_tokens or context_length, context_length - 1),
        max_n=limits.max_n,
        max_stop_strings=limits.max_stop_strings,
        max_stop_string_bytes=limits.max_stop_string_bytes,
        max_bad_words=limits.max_bad_words,
        max_bad_word_bytes=limits.max_bad_word_bytes,
        max_logprobs=limits.max_logprobs,
        max_logit_bias=limits.max_logit_bias,
        max_message_bytes=limits.max_message_bytes,
        default_deadline=_duration(limits.default_deadline_s),
        max_deadline=_duration(limits.max_deadline_s),
        max_text_bytes=min(limits.max_prompt_bytes, info.max_text_bytes or limits.max_prompt_bytes),
        max_chat_bytes=limits.max_prompt_bytes,
        max_messages=limits.max_messages,
        max_detokenize_tokens=min(context_length, limits.max_prompt_bytes),
    )


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9))
