"""The fields of a request that say how it is to be routed: bounds only. Which classes there are
the router's policy knows."""

from typing import Final

from google.protobuf.duration_pb2 import Duration

from cluster.errors import InvalidRequest
from cluster.limits import Limits
from cluster.types import RoutingHints
from penstock.v1 import inference_pb2 as pb

MAX_BUDGET_S: Final = 86_400.0
_NANOS: Final = 1_000_000_000


def routing_hints(
    request: pb.GenerateRequest, limits: Limits, only_class: str | None = None
) -> RoutingHints:
    """`only_class`: what whoever asks may be served as; None: as he says."""
    return RoutingHints(
        service_class=_service_class(request.service_class, limits, only_class),
        session_key=_name(
            request.session_key, limits.max_session_key_chars, "session_key", "A session key"
        ),
        ttft_budget_s=_budget_s(request, "ttft_budget"),
        itl_budget_s=_budget_s(request, "itl_budget"),
    )


def _service_class(asked: str, limits: Limits, only_class: str | None) -> str:
    _name(asked, limits.max_class_chars, "service_class", "A service class")
    if only_class is None:
        return asked
    if asked not in ("", only_class):
        raise InvalidRequest(
            "service_class",
            f"Requests with this API key are of class '{only_class}': name that, or none.",
        )
    return only_class


def _name(value: str, max_chars: int, field: str, what: str) -> str:
    if len(value) > max_chars or not value.isprintable():
        raise InvalidRequest(field, f"{what} has at most {max_chars} printable characters.")
    return value


def _budget_s(request: pb.GenerateRequest, field: str) -> float | None:
    if not request.HasField(field):
        return None
    duration: Duration = getattr(request, field)
    seconds = duration.seconds + duration.nanos / _NANOS
    if not (0 <= duration.nanos < _NANOS and 0.0 < seconds <= MAX_BUDGET_S):
        raise InvalidRequest(
            field,
            f"{field} is {seconds:g} s; give a duration above 0, at most {MAX_BUDGET_S:g} s.",
        )
    return seconds
