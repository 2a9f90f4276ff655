"""In how many types a remote-prefill request is held on its way, and in how many places it changes
form; both are printed.

A type *carries* the request if an instance of it has a field that is what the request is known by:
its id, its prompt, its seed, or the bytes of all of it. It *holds* the request if a field of it is
an instance that carries it, or a list of such. Looked at is every instance of our classes and
messages that a call takes or returns while the request runs; arrays of a step are all its rows'.

A *conversion* is a place that calls a function of a codec, itself none, while the request runs and
not while nothing is asked.
"""

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf.message import Message

from penstock.v1 import inference_pb2 as pb
from tests.exactness.ways import Way, cluster_of
from tests.workers.local_cluster import LocalCluster

ROOT = Path(__file__).parents[2]
ID, PROMPT, SEED = "the-request-itself", list(range(60, 130)), 730_241_869
# Each may only fall. One that carries it is what a client that lost its stream finds it again by.
MOST_CARRYING, MOST_HOLDING, MOST_CONVERSIONS = 17, 11, 12


class Trace:
    """What calls of our functions take and return, and which of them are a codec's."""

    def __init__(self) -> None:
        self.is_on = False
        self.values: dict[int, Any] = {}  # kept alive, so that no id stands for two
        self.conversions: set[str] = set()

    def on_event(self, frame: FrameType, event: str, given: object) -> None:
        file = _of_ours(frame.f_code.co_filename) if self.is_on else ""
        if not file:
            return
        if event == "return":
            self._note(given)
        elif event == "call":
            names = frame.f_code.co_varnames[: frame.f_code.co_argcount + _num_keywords(frame)]
            given_here = frame.f_locals
            for name in names:
                self._note(given_here.get(name))
            self._note_conversion(file, frame)

    def _note(self, value: object) -> None:
        if _is_ours(type(value)):
            self.values[id(value)] = value
            if isinstance(value, Message):
                for part in _fields(value).values():
                    self._note(part)

    def _note_conversion(self, file: str, frame: FrameType) -> None:
        back = frame.f_back
        caller = _of_ours(back.f_code.co_filename) if back is not None else ""
        if file.endswith("codec.py") and caller and not caller.endswith("codec.py"):
            assert back is not None
            place = back.f_code.co_qualname.partition(".<locals>")[0]
            self.conversions.add(f"{frame.f_code.co_qualname}, by {caller}: {place}")

    @contextmanager
    def installed(self) -> Iterator[None]:
        threading.setprofile(self.on_event)
        sys.setprofile(self.on_event)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)


def _num_keywords(frame: FrameType) -> int:
    return frame.f_code.co_kwonlyargcount


@cache
def _of_ours(file: str) -> str:
    """The file's name in the project; empty: it is no shipped one, or a stub."""
    name = file.removeprefix(f"{ROOT}/")
    return "" if name == file or name.split("/")[0] in ("tests", "penstock", ".venv") else name


@cache
def _is_ours(kind: type) -> bool:
    if issubclass(kind, Message):
        return kind.__module__.startswith("penstock.")
    return bool(_of_ours(getattr(sys.modules.get(kind.__module__), "__file__", None) or ""))


def _fields(value: Any) -> dict[str, Any]:
    if isinstance(value, Message):
        return {field.name: part for field, part in value.ListFields()}
    if isinstance(value, tuple):
        return dict(enumerate(value))  # type: ignore[arg-type]
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return {n: getattr(value, n) for n in slots if hasattr(value, n)} | getattr(
        value, "__dict__", {}
    )


def _is_known_by(part: Any) -> bool:
    """Whether it is what the request is known by."""
    match part:
        case bool() | float() | dict() | np.ndarray() | torch.Tensor():
            return False
        case str():
            return part == ID
        case int():
            return part == SEED
        case bytes():
            return ID.encode() in part
    return hasattr(part, "__getitem__") and not _is_ours(type(part)) and list(part) == PROMPT


def _carries(value: Any) -> bool:
    return any(map(_is_known_by, _fields(value).values()))


def _name(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("penstock.v1.")


def carriers(values: list[Any]) -> tuple[set[str], set[str]]:
    """The names of the types that carry the request, and of those that hold it."""
    carrying = {id(value) for value in values if _carries(value)}
    holding = set()
    for value in values:
        parts = [
            each
            for part in _fields(value).values()
            for each in (part if isinstance(part, list | tuple | set) else [part])
        ]
        if any(id(part) in carrying for part in parts):
            holding.add(_name(value))
    carried = {_name(value) for value in values if id(value) in carrying}
    return carried, holding - carried


async def ask(cluster: LocalCluster, request_id: str, prompt: list[int], seed: int) -> None:
    request = pb.GenerateRequest(
        request_id=request_id,
        token_ids=pb.TokenIds(ids=prompt),
        sampling=pb.SamplingParams(temperature=0.0, seed=seed),
        stop=pb.LengthAndStop(max_tokens=12, ignore_eos=True),
    )
    assert (await cluster.generate(request, timeout_s=120)).is_complete


@pytest.mark.slow
async def test_few_types_carry_a_request_and_few_places_convert_it(tmp_path: Path) -> None:
    trace = Trace()
    with trace.installed():
        async with cluster_of("llama", Way(), tmp_path) as cluster:
            await ask(cluster, "before", list(range(2, 60)), 1)
            trace.is_on = True
            await asyncio.sleep(1.5)  # a heartbeat, and reports: what is said anyway
            anyway, trace.conversions = trace.conversions, set()
            await ask(cluster, ID, PROMPT, SEED)
            trace.is_on = False
    carrying, holding = carriers(list(trace.values.values()))
    conversions = trace.conversions - anyway
    for title, names in (
        ("carry", carrying),
        ("hold", holding),
        ("convert", conversions),
    ):
        print(f"{len(names)} {title} it:", *sorted(names), sep="\n    ")
    assert len(carrying) <= MOST_CARRYING
    assert len(holding) <= MOST_HOLDING
    assert len(conversions) <= MOST_CONVERSIONS
