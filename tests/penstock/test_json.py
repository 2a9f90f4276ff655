"""`--json`: one value on stdout, in which numbers are numbers, whatever happens."""

import json
import math
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from penstock.cli.messages import plain
from penstock.cli.output import json_line
from penstock.v1 import inference_pb2, worker_pb2
from tests.penstock.command_line import Penstock

SHOWN = (
    inference_pb2.Model,
    inference_pb2.Timeline,
    worker_pb2.StatusResponse,
    worker_pb2.PolicyStatusResponse,
    worker_pb2.PolicyChange,
    worker_pb2.ExplainResponse,
)


def filled(message: Any, depth: int = 0) -> Any:
    """Every field set: numbers to 2."""
    for field in message.DESCRIPTOR.fields:
        is_list = field.is_repeated
        if field.message_type and field.message_type.GetOptions().map_entry:
            continue
        if field.message_type:
            if depth < 5:
                inner = getattr(message, field.name)
                filled(inner.add() if is_list else inner, depth + 1)
            continue
        value = {
            FieldDescriptor.CPPTYPE_STRING: "x" if field.type != field.TYPE_BYTES else b"x",
            FieldDescriptor.CPPTYPE_BOOL: True,
            FieldDescriptor.CPPTYPE_ENUM: 0,
        }.get(field.cpp_type, 2)
        if is_list:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    return message


def texts_of_numbers(descriptor: Any, values: Any) -> list[str]:
    """Names of number fields whose values are no numbers."""
    wrong = []
    for name, value in values.items():
        field = descriptor.fields_by_name[name]
        for item in value if isinstance(value, list) else [value]:
            if field.message_type and isinstance(item, dict):
                wrong += texts_of_numbers(field.message_type, item)
            is_number = field.cpp_type in range(1, 7)  # of all widths
            if is_number and not isinstance(item, int | float):
                wrong.append(name)
    return wrong


@pytest.mark.parametrize("kind", SHOWN)
def test_numbers_are_numbers(kind: type[Message]) -> None:
    message = filled(kind())
    assert texts_of_numbers(kind.DESCRIPTOR, plain(message)) == []


def test_the_numbers_of_a_map_are_numbers_too() -> None:
    request = inference_pb2.GenerateRequest()
    request.sampling.logit_bias[7] = 2.5
    assert plain(request)["sampling"]["logit_bias"] == {"7": 2.5}


def test_what_json_has_no_number_for_is_null() -> None:
    line = json_line({"a": math.inf, "b": [math.nan, (1.5, 2)]})
    assert json.loads(line) == {"a": None, "b": [None, [1.5, 2]]}
    assert (
        json.loads(json_line(plain(inference_pb2.Timeline(queue_seconds=math.inf))))[
            "queue_seconds"
        ]
        is None
    )


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("status",), "UNREACHABLE"),
        (("models", "-a", "127.0.0.1:1"), "UNREACHABLE"),
        (("serve", "--transport", "pigeon"), "USAGE"),
        (("simulate", "--workers", "2x2"), "CONFIG"),
        (("policy", "show", "/nowhere"), "CONFIG"),
        (("policy", "diff", "/nowhere", "/nowhere"), "USAGE"),
        (("policy", "import", "/nowhere", "--from", "llm-d"), "FAILURE"),
    ],
)
def test_a_failure_is_a_value_too(
    penstock: Penstock, command: tuple[str, ...], reason: str, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = penstock(*command, "--json")
    assert ended.code != 0
    assert ended.json["error"]["reason"] == reason
    assert ended.json["error"]["message"] in ended.err
