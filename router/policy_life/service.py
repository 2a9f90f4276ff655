"""Answers what operators ask of the policy in force; part of the internal `Cluster` service, behind
its token."""

from collections.abc import Callable

from cluster.errors import InvalidRequest
from cluster.rpc import Call, Serve
from penstock.v1 import worker_pb2 as pb
from router.placer import Placer
from router.policy_life.codec import change_to_pb, history_to_pb, record_to_pb, status_to_pb
from router.policy_life.keeper import PolicyKeeper
from router.rollout.history import Author

DEFAULT_CANDIDATES = 50
MAX_CANDIDATES = 1000
MAX_SOURCE = 200  # letters


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
                "request_id", "This router remembers no request of that id: it may be too long ago."
            )
        most = min(request.max_candidates or DEFAULT_CANDIDATES, MAX_CANDIDATES)
        return record_to_pb(record, self._clock(), most)


def _author(name: str, call: Call) -> Author:
    """Names him by his own word, and from where his connection comes."""
    return Author(name=_bounded("by", name) or "unknown", address=call.peer_host)


def _bounded(field: str, text: str) -> str:
    if len(text) > MAX_SOURCE or not text.isprintable():
        raise InvalidRequest(
            field, f"'{field}' is a line of at most {MAX_SOURCE} letters: shorten it."
        )
    return text
