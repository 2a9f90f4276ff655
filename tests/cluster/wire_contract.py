"""The contract of each wire version, as it was recorded: message by message the number, the type
and the label of each field. As a program it records that of now, under the wire version of now."""

import json
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from cluster.wire_version import WIRE_VERSION
from penstock.v1 import inference_pb2, worker_pb2

Contract = dict[str, dict[str, str]]  # message -> field number -> what it is

# What workers alone say to each other: it may change with the wire version.
OF_WORKERS = frozenset({"Worker.Lend", "Worker.Fence", "Worker.Probe"})


def recorded(version: int) -> Contract:
    found: Contract = json.loads(_file(version).read_text())
    return found


def is_recorded(version: int) -> bool:
    return _file(version).exists()


def contract() -> Contract:
    """As the stubs say it now."""
    return {each.full_name: _fields(each) for each in _messages()}


def shared_with_routers() -> set[str]:
    """Messages that routers, the store or clients see: of any call but those of workers alone."""
    found: set[str] = set()
    for file in (inference_pb2.DESCRIPTOR, worker_pb2.DESCRIPTOR):
        for service in file.services_by_name.values():
            for method in service.methods:
                if f"{service.name}.{method.name}" not in OF_WORKERS:
                    _reach(method.input_type, found)
                    _reach(method.output_type, found)
    return found


def breaks(before: Contract, now: Contract, messages: set[str]) -> list[str]:
    """What whoever speaks as before would misread, or miss, a line each."""
    return [
        f"{message}, field {number}: was {what}, is {now.get(message, {}).get(number, 'gone')}"
        for message, fields in before.items()
        if message in messages
        for number, what in fields.items()
        if now.get(message, {}).get(number) != what
    ]


def _fields(message: Descriptor) -> dict[str, str]:
    return {str(each.number): _described(each) for each in message.fields}


def _described(field: FieldDescriptor) -> str:
    kind = field.message_type or field.enum_type
    name = kind.full_name if kind else f"type {field.type}"
    return f"{'repeated ' if field.is_repeated else ''}{name} {field.name}"


def _messages() -> Iterator[Descriptor]:
    for file in (inference_pb2.DESCRIPTOR, worker_pb2.DESCRIPTOR):
        yield from file.message_types_by_name.values()


def _reach(message: Descriptor, found: set[str]) -> None:
    if message.full_name not in found:
        found.add(message.full_name)
        for field in message.fields:
            if field.message_type is not None:
                _reach(field.message_type, found)


def _file(version: int) -> Path:
    return Path(__file__).with_name("contracts") / f"wire_{version}.json"


if __name__ == "__main__":
    text = json.dumps(contract(), indent=0, sort_keys=True)
    _file(WIRE_VERSION).parent.mkdir(exist_ok=True)
    _file(WIRE_VERSION).write_text(text + "\n")
