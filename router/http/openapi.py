"""What the door serves, as a table; and the OpenAPI page that is made of it and of the types of
bodies."""

import re
from typing import Any, Final, NamedTuple

from router.http.call import RESUME_KEY
from router.http.errors import ErrorReply
from router.http.fields import (
    ChatRequest,
    CompletionRequest,
    DetokenizeFields,
    TokenizeFields,
)
from router.http.replies import (
    ChatReply,
    DetokenizeReply,
    ModelCard,
    ModelList,
    StateReply,
    TextReply,
    TokenizeReply,
    VersionReply,
)
from router.http.response_fields import ResponseRequest
from router.http.response_replies import ResponseReply
from router.http.resumable import LAST_EVENT_KEY
from router.http.typed_json import encode, schemas

_KEY: Final = "api_key"
_NAMED: Final = re.compile(r"{(\w+)")  # in a path


class Operation(NamedTuple):
    path: str
    method: str
    name: str
    summary: str
    reply: type[Any]
    body: type[Any] | None = None
    is_streamed: bool = False  # where the body asks for it
    is_open: bool = False  # to whoever comes, without a key


OPERATIONS: Final = (
    Operation(
        "/v1/chat/completions",
        "POST",
        "chat",
        "Answers a chat, as a whole or as a stream",
        ChatReply,
        ChatRequest,
        is_streamed=True,
    ),
    Operation(
        "/v1/completions",
        "POST",
        "completion",
        "Continues texts or token ids, as a whole or as a stream",
        TextReply,
        CompletionRequest,
        is_streamed=True,
    ),
    Operation(
        "/v1/responses",
        "POST",
        "response",
        "Answers a text or messages, as a whole or as a stream of typed events",
        ResponseReply,
        ResponseRequest,
        is_streamed=True,
    ),
    Operation(
        "/v1/streams/{request_id:path}",
        "GET",
        "resumed",
        "Goes on with a stream that was lost, after the event that came last",
        dict,
        is_streamed=True,
    ),
    Operation("/v1/models", "GET", "models", "Lists the one model that is served", ModelList),
    Operation("/v1/models/{model:path}", "GET", "model", "Tells of the model", ModelCard),
    Operation("/tokenize", "POST", "tokenize", "Makes token ids", TokenizeReply, TokenizeFields),
    Operation("/detokenize", "POST", "detokenize", "Makes text", DetokenizeReply, DetokenizeFields),
    Operation(
        "/version", "GET", "version", "Tells the version of Penstock", VersionReply, is_open=True
    ),
    Operation(
        "/livez", "GET", "livez", "Answers while this process lives", StateReply, is_open=True
    ),
    Operation(
        "/readyz",
        "GET",
        "readyz",
        "Tells whether a request would be served",
        StateReply,
        is_open=True,
    ),
    Operation("/health", "GET", "readyz", "The same", StateReply, is_open=True),
    Operation("/metrics", "GET", "metrics", "Tells of this router, as Prometheus reads it", str),
    Operation(
        "/metrics/targets", "GET", "targets", "Tells Prometheus where workers are scraped", list
    ),
    Operation("/openapi.json", "GET", "openapi", "This page", dict, is_open=True),
)


def openapi_page(version: str) -> bytes:
    bodies = [each for op in OPERATIONS for each in (op.reply, op.body)]
    types = [each for each in bodies if each not in (None, dict, list, str)]
    _, components = schemas(ErrorReply, *types)
    paths: dict[str, Any] = {}
    for op in OPERATIONS:
        paths.setdefault(op.path.replace(":path", ""), {})[op.method.lower()] = _described(op)
    page = {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {_KEY: {"type": "http", "scheme": "bearer"}},
        },
    }
    return encode(page)


def _described(op: Operation) -> dict[str, Any]:
    said: dict[str, Any] = {
        "operationId": op.name if op.path != "/health" else "health",
        "summary": op.summary,
        "responses": {
            "200": {"description": "Done", "content": _content(op)},
            "default": {"description": "Refused or failed", "content": _json(_named(ErrorReply))},
        },
    }
    if not op.is_open:
        said["security"] = [{_KEY: []}, {}]  # where callers are asked for one
    if op.body is not None:
        said["requestBody"] = {"required": True, "content": _json(_named(op.body))}
    for name in _NAMED.findall(op.path):
        given = {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        said["parameters"] = [given]
    if op.name == "resumed":
        said["parameters"] += [_header(RESUME_KEY, is_required=True), _header(LAST_EVENT_KEY)]
    if op.name == "readyz":
        said["responses"]["503"] = {"description": "Not now", "content": _json(_named(op.reply))}
    return said


def _header(name: str, *, is_required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": is_required, "schema": {"type": "string"}}


def _content(op: Operation) -> dict[str, Any]:
    if op.reply is str:
        return {"text/plain": {}}
    content = _json({} if op.reply in (dict, list) else _named(op.reply))
    return content | ({"text/event-stream": {}} if op.is_streamed else {})


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _named(kind: type[Any]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
