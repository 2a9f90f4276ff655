"""What routers tell only who has the cluster's token: which requests were late and why, and how
their policies fare."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from cluster.errors import PenstockError as ClusterError
from penstock.cli.cluster_calls import ask_cluster
from penstock.errors import PenstockError
from penstock.v1 import worker_pb2 as pb

PHASES: Final = ("router", "queue", "prefill", "transfer", "decode")
_WINDOW_S: Final = 600.0  # that late requests are asked of
_MOST: Final = 50
_CANDIDATES: Final = 5


class Unasked(Exception):
    """A router does not tell; the text says why."""


class LateRequest(NamedTuple):
    """A request by how late it was; seconds. None: not known, or not yet."""

    request_id: str
    age_s: float
    state: str
    lateness: float  # times its target
    ttft_s: float | None
    itl_s: float | None
    total_s: float | None
    phases: Mapping[str, float]  # by name; empty: it has not finished
    target_ttft_s: float
    target_itl_s: float
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    prefill: str
    decode: str
    generation: int
    moved: int


class Explained(NamedTuple):
    """Why a request went where it went, try by try."""

    request_id: str
    tries: Sequence["ExplainedChoice"]


class ExplainedChoice(NamedTuple):
    rule: str
    sentence: str
    predicted_ttft_s: float
    candidates: Sequence[tuple[str, float, Sequence[tuple[str, float]]]]  # who, price, its terms
    left_out: Sequence[tuple[str, str]]
    afterwards: str  # in hindsight; empty: not known


class Changes(NamedTuple):
    """What is in force and on trial, and what changed lately, in the router's words."""

    last_change: str
    trial: str
    recent: Sequence[tuple[float, int, str, str, str]]  # Unix time, generation, policy, by, why


class Inside(NamedTuple):
    """Where to ask, and with what secrets. Its calls block, two seconds at the most."""

    address: str
    secrets_file: Path

    def late(self) -> list[LateRequest]:
        """The latest first. Raises Unasked."""
        request = pb.SlowRequestsRequest(window_seconds=_WINDOW_S, max_requests=_MOST)
        reply = self._ask("SlowRequests", request)
        if not reply.remembered:
            raise Unasked("The router keeps no records of requests: see 'records_budget_bytes'.")
        return [_late(each) for each in reply.requests]

    def explained(self, request_id: str) -> Explained:
        """Raises Unasked."""
        request = pb.ExplainRequest(request_id=request_id, max_candidates=_CANDIDATES)
        reply = self._ask("Explain", request)
        return Explained(request_id, [_choice(each) for each in reply.tries])

    def changes(self) -> Changes:
        """Raises Unasked."""
        status = self._ask("PolicyStatus", pb.PolicyStatusRequest())
        history = self._ask("PolicyHistory", pb.PolicyHistoryRequest())
        trial = status.trial.verdict if status.HasField("trial") else ""
        recent = [
            (each.unix_seconds, each.generation, each.name, each.by, each.why)
            for each in reversed(history.changes)
        ]
        return Changes(status.last_change, trial, recent)

    def metrics(self) -> str:
        """Where the router is scraped; empty: nowhere. Raises Unasked."""
        reply: pb.StatusResponse = self._ask("Status", pb.StatusRequest())
        return reply.metrics

    def _ask(self, method: str, request: Any) -> Any:
        try:
            return ask_cluster(method, request, self.address, self.secrets_file)
        except (PenstockError, ClusterError) as error:
            raise Unasked(error.message) from error


def _late(each: pb.SlowRequest) -> LateRequest:
    outcome, names = each.outcome, PHASES if each.HasField("phases") else ()
    return LateRequest(
        request_id=each.request_id,
        age_s=each.age_seconds,
        state=outcome.state,
        lateness=each.lateness,
        ttft_s=outcome.ttft_seconds if outcome.HasField("ttft_seconds") else None,
        itl_s=each.itl_seconds if each.HasField("itl_seconds") else None,
        total_s=outcome.total_seconds if outcome.HasField("total_seconds") else None,
        phases={name: getattr(each.phases, f"{name}_seconds") for name in names},
        target_ttft_s=each.target_ttft_seconds,
        target_itl_s=each.target_itl_seconds,
        prompt_tokens=each.prompt_tokens,
        cached_tokens=outcome.cached_tokens,
        tokens=outcome.tokens,
        prefill=each.prefill,
        decode=each.decode,
        generation=each.generation,
        moved=outcome.moved,
    )


def _choice(told: pb.ExplainedTry) -> ExplainedChoice:
    afterwards = ""
    if told.HasField("regret_seconds"):
        afterwards = (
            f"{1e3 * told.regret_seconds:.1f} ms dearer than the best: {told.best_afterwards}"
            if told.regret_seconds
            else "as good as any"
        )
    return ExplainedChoice(
        rule=told.rule,
        sentence=told.sentence,
        predicted_ttft_s=told.predicted_ttft_seconds,
        candidates=[
            (
                f"{each.prefill} → {each.decode}" if each.prefill else each.decode,
                each.price_seconds,
                [(term.name, term.seconds) for term in each.terms if term.seconds],
            )
            for each in told.candidates
        ],
        left_out=[(each.worker, each.reason) for each in told.left_out],
        afterwards=afterwards,
    )
