"""Answers what operators ask of the policy in force; part of the internal `Cluster` service, behind
its token."""

import asyncio
from collections.abc import Callable

from cluster.errors import InvalidRequest
from cluster.rpc import Call, Serve
from penstock.v1 import worker_pb2 as pb
from router.placer import Placer
from router.policy_life.codec import (
    change_to_pb,
    history_to_pb,
    record_to_pb,
    slow_to_pb,
    status_to_pb,
)
from router.policy_life.keeper import PolicyKeeper
from router.rollout.history import Author
from router.slow import SlowRecord, slowest

DEFAULT_CANDIDATES = 50
MAX_CANDIDATES = 1000
MAX_SOURCE = 200  # letters
DEFAULT_SLOW = 20  # requests
MAX_SLOW = 200
MAX_WINDOW_S = 86_400.0
_AT_ONCE = 256  # records are looked at between two turns of the event loop


class PolicyService:
    def __init__(self, *, keeper: PolicyKeeper, placer: Placer, clock: Callable[[], float]) -> None:
        self._keeper = keeper
        self._placer = placer
        self._clock = clock

    @property
    def rpcs(self) -> dict[str, Serve]:
        return {
            "ApplyPolicy": self.apply,
            "ReloadPolicy": self.reload,
            "RollBackPolicy": self.roll_back,
            "PolicyStatus": self.status,
            "PolicyHistory": self.history,
            "Explain": self.explain,
            "SlowRequests": self.slow,
        }

    async def apply(self, request: pb.ApplyPolicyRequest, call: Call) -> pb.PolicyChange:
        source = _bounded("source", request.source) or "apply"
        share = request.canary_share if request.HasField("canary_share") else None
        author = _author(request.by, call)
        return change_to_pb(await self._keeper.apply(request.text, source, share, author))

    async def reload(self, request: pb.ReloadPolicyRequest, call: Call) -> pb.PolicyChange:
        return change_to_pb(await self._keeper.reload(_author(request.by, call)))

    async def roll_back(self, request: pb.RollBackPolicyRequest, call: Call) -> pb.PolicyChange:
        author, reason = _author(request.by, call), _bounded("reason", request.reason)
        return change_to_pb(await self._keeper.roll_back(reason, author))

    async def history(
        self, request: pb.PolicyHistoryRequest, call: Call
    ) -> pb.PolicyHistoryResponse:
        return history_to_pb(self._keeper.rollout.history)

    async def status(self, request: pb.PolicyStatusRequest, call: Call) -> pb.PolicyStatusResponse:
        return status_to_pb(self._keeper, self._placer)

    async def explain(self, request: pb.ExplainRequest, call: Call) -> pb.ExplainResponse:
        record = self._placer.record(request.request_id)
        if record is None:
            raise InvalidRequest(
                "request_id",
                "This router remembers no request of that id: it may be too long ago, or have been"
                " placed by another router, or before this one's start.",
            )
        most = min(request.max_candidates or DEFAULT_CANDIDATES, MAX_CANDIDATES)
        return record_to_pb(record, self._clock(), most)

    async def slow(self, request: pb.SlowRequestsRequest, call: Call) -> pb.SlowRequestsResponse:
        window_s, now = request.window_seconds, self._clock()
        if not 0.0 < window_s <= MAX_WINDOW_S:
            raise InvalidRequest(
                "window_seconds",
                f"'window_seconds' is {window_s:g}: give seconds, {MAX_WINDOW_S:,.0f} at most.",
            )
        records = self._placer.records
        kept = {
            id(each): each for each in (*records.since(now - window_s), *self._placer.in_flight)
        }
        looked_at, found = list(kept.values()), list[SlowRecord]()
        for start in range(0, len(looked_at), _AT_ONCE):
            most = min(request.max_requests or DEFAULT_SLOW, MAX_SLOW)
            found = slowest(found, looked_at[start : start + _AT_ONCE], now, most)
            await asyncio.sleep(0)
        return slow_to_pb(found, now, len(looked_at), are_kept=records.budget_bytes > 0)


def _author(name: str, call: Call) -> Author:
    """Names him by his own word, and from where his connection comes."""
    return Author(name=_bounded("by", name) or "unknown", address=call.peer_host)


def _bounded(field: str, text: str) -> str:
    if len(text) > MAX_SOURCE or not text.isprintable():
        raise InvalidRequest(
            field, f"'{field}' is a line of at most {MAX_SOURCE} letters: shorten it."
        )
    return text
