"""The parameters of a request to their message and back, each by its name: what there is, the
contract says. Knows none of them.

Floats of parameters are 32 bits wide on the wire, so a value that was once on it stays the same
for ever.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, NamedTuple

from google.protobuf.unknown_fields import UnknownFieldSet

from cluster.errors import UnsupportedFeature
from cluster.types import GenerationParams, SamplingParams
from penstock.v1 import inference_pb2, worker_pb2


class _Way(NamedTuple):
    """Says how fields go onto the wire and come from it."""

    names: tuple[str, ...]
    values: Callable[[Any], tuple[Any, ...]]  # of all these, in one go
    to_wire: dict[str, Callable[[Any], Any]]  # those that go as something else ...
    from_wire: dict[str, Callable[[Any], Any]]  # ... and come so
    optional: tuple[str, ...]


def params_to_pb(params: GenerationParams) -> worker_pb2.ResolvedParams:
    values = _to_wire(params.sampling, _SAMPLING) | _to_wire(params, _ANSWER)
    return worker_pb2.ResolvedParams(**values)


def params_from_pb(message: worker_pb2.ResolvedParams) -> GenerationParams:
    """Raises UnsupportedFeature where a newer peer means what is not known here: it would be
    ignored."""
    unknown: Any = UnknownFieldSet(message)
    if len(unknown):
        raise UnsupportedFeature(
            f"field {unknown[0].field_number} of the parameters",
            "The request asks for what this worker is too old for.",
        )
    sampling = SamplingParams(**_from_wire(message, _SAMPLING))
    return GenerationParams(sampling=sampling, **_from_wire(message, _ANSWER))


def _to_wire(params: Any, way: _Way) -> dict[str, Any]:
    values = dict(zip(way.names, way.values(params), strict=True))
    for name, to_wire in way.to_wire.items():
        values[name] = to_wire(values[name])
    return values


def _from_wire(message: worker_pb2.ResolvedParams, way: _Way) -> dict[str, Any]:
    values = dict(zip(way.names, way.values(message), strict=True))
    for name, from_wire in way.from_wire.items():
        values[name] = from_wire(values[name])
    for name in way.optional:
        if not message.HasField(name):
            values[name] = None
    return values


def _sorted_items(values: Any) -> tuple[tuple[int, float], ...]:
    return tuple(sorted(values.items()))


def _token_ids_to_pb(values: tuple[tuple[int, ...], ...]) -> list[inference_pb2.TokenIds]:
    return [inference_pb2.TokenIds(ids=ids) for ids in values]


def _token_ids_from_pb(messages: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(message.ids) for message in messages)


def _way(*, of_answer: bool) -> _Way:
    all_fields: Any = worker_pb2.ResolvedParams.DESCRIPTOR.fields
    mark: Any = worker_pb2.of_answer
    fields = [field for field in all_fields if field.GetOptions().Extensions[mark] is of_answer]
    lists = [field for field in fields if field.is_repeated and field.message_type is None]
    nested = [field for field in fields if field.message_type is not None]
    maps = {field.name for field in nested if field.message_type.GetOptions().map_entry}
    return _Way(
        names=tuple(field.name for field in fields),
        values=attrgetter(*(field.name for field in fields)),
        to_wire={f.name: dict if f.name in maps else _token_ids_to_pb for f in nested},
        from_wire={field.name: tuple for field in lists}
        | {f.name: _sorted_items if f.name in maps else _token_ids_from_pb for f in nested},
        optional=tuple(field.name for field in fields if field.has_presence),
    )


_SAMPLING: Final = _way(of_answer=False)
_ANSWER: Final = _way(of_answer=True)
