"""The internal `Cluster` service: workers register here, operators ask for the state of things.

Only callers who have proven that they hold the cluster token get this far.
"""

from collections.abc import Callable, Mapping
from typing import Final

from cluster.codec import load_report_to_pb
from cluster.diagnosis import Diagnosis
from cluster.errors import FingerprintMismatch, InvalidRequest
from cluster.membership import DEFAULT_TTL_S, Membership
from cluster.release import version
from cluster.rpc import Call, Serve
from cluster.types import Incarnation, WorkerId
from cluster.worker_codec import member_from_pb, member_to_pb
from penstock.v1 import worker_pb2
from router.admission import Admission
from router.books import PlacerCounters
from router.callers.callers import Callers
from router.callers.quotas import Quotas
from router.fleet import Fleet, Identity
from router.placer import Placer
from router.pool import MemberStatus
from router.relay import RelayCounters
from router.status_codec import (
    accuracy_to_pb,
    away_to_pb,
    callers_to_pb,
    certificate_to_pb,
    classes_to_pb,
    seen_to_pb,
    tenants_to_pb,
    waiting_to_pb,
)
from router.tls.follow import DoorCertificate
from router.waiting import WaitingRoom

NAME = "penstock.v1.Cluster"
_PATIENCE = 3.0  # times the interval of a planner, until it is taken to be gone
_MOST_S: Final = 86_400.0


class ClusterService:
    def __init__(
        self,
        *,
        membership: Membership,
        identity: Identity,
        fleet: Fleet,
        placer: Placer,
        relayed: RelayCounters,
        admission: Admission,
        waiting: WaitingRoom,
        callers: Callers,
        certificate: DoorCertificate | None,
        quotas: Quotas,
        diagnosis: Diagnosis,
        clock: Callable[[], float],
        listens: Callable[[], str],
        internal: Callable[[], str],
        metrics: Callable[[], str],
        is_open: bool,
    ) -> None:
        """`listens`: the address of the front door, known once it is open, `internal`: where calls
        of the cluster come in from other machines, `metrics`: who scrapes, if they do; `is_open`:
        others than this machine's may come in at a front door."""
        self._membership = membership
        self._identity = identity
        self._fleet = fleet
        self._placer = placer
        self._relayed = relayed
        self._admission = admission
        self._waiting = waiting
        self._callers = callers
        self._certificate = certificate
        self._quotas = quotas
        self._diagnosis = diagnosis
        self._clock = clock
        self._listens = listens
        self._internal = internal
        self._metrics = metrics
        self._is_open = is_open

    @property
    def rpcs(self) -> dict[str, Serve]:
        return {
            "Register": self.register,
            "Deregister": self.deregister,
            "Status": self.status,
            "Observe": self.observe,
            "Diagnose": self._diagnosis.diagnose,
        }

    async def register(
        self, request: worker_pb2.RegisterRequest, call: Call
    ) -> worker_pb2.RegisterResponse:
        """Takes a worker in, or renews it. Refuses one that could not work with the others."""
        member = member_from_pb(request)
        if diff := self._identity.mismatch(member):
            raise FingerprintMismatch(
                f"'{member.worker.worker_id}' cannot join: the router and it differ in "
                f"{'; '.join(diff)}. Start both from the same checkpoint and settings."
            )
        ttl_s = request.ttl_seconds or DEFAULT_TTL_S
        members = await self._membership.join(member, ttl_s=ttl_s)
        if not self._fleet.follows(member.worker):
            self._fleet.refresh()
        return worker_pb2.RegisterResponse(members=[member_to_pb(other) for other in members])

    async def deregister(
        self, request: worker_pb2.DeregisterRequest, call: Call
    ) -> worker_pb2.DeregisterResponse:
        worker, incarnation = WorkerId(request.worker_id), Incarnation(request.incarnation)
        await self._membership.leave(worker, incarnation)
        self._placer.pool.goodbye(worker, incarnation)
        self._fleet.refresh()
        return worker_pb2.DeregisterResponse()

    async def status(
        self, request: worker_pb2.StatusRequest, call: Call
    ) -> worker_pb2.StatusResponse:
        now, placer, index = self._clock(), self._placer, self._placer.index
        placer.books.speculation.lapse(now)
        statuses = sorted(placer.pool.statuses(now), key=_order)
        ages = index.staleness_s(now)
        return worker_pb2.StatusResponse(
            workers=[self._worker(status, ages) for status in statuses],
            requests_in_flight=self._admission.num_in_flight,
            index_grains=index.num_grains,
            index_bytes=index.num_bytes,
            router_version=version(),
            relay=_relay_status(self._relayed, placer.books.counters),
            forgotten_grains=index.num_forgotten,
            expected_grains=placer.books.speculation.num_grains,
            accuracy=accuracy_to_pb(placer.books.observed.accuracy),
            classes=classes_to_pb(placer),
            tenants=tenants_to_pb(placer, now),
            short_of_workers=placer.books.tenants.is_short(now),
            sessions=len(placer.books.sessions),
            warming_up=not self._fleet.is_warm.is_set(),
            waiting=waiting_to_pb(self._waiting),
            away=away_to_pb(placer.pool.absences, now),
            listens=self._listens(),
            internal=self._internal(),
            metrics=self._metrics(),
            insecure=self._is_open and not (self._callers.are_asked or self._asks_clients),
            callers=callers_to_pb(self._callers, self._quotas),
            plain=self._is_open and self._certificate is None,
            certificate=certificate_to_pb(self._certificate),
        )

    async def observe(
        self, request: worker_pb2.ObserveRequest, call: Call
    ) -> worker_pb2.ObserveResponse:
        """Keeps traffic from now on, and tells what came since it was first asked."""
        _check_spans(request)
        now, placer = self._clock(), self._placer
        gone_at = now + _PATIENCE * request.next_seconds
        traffic = placer.books.observed.traffic
        traffic.keep(now, gone_at + request.window_seconds)
        if request.start_seconds:
            placer.pool.cold_start.promise(request.start_seconds, gone_at)
        ages = placer.index.staleness_s(now)
        return worker_pb2.ObserveResponse(
            watched_seconds=now - traffic.since_s,
            requests=seen_to_pb(traffic, now, request.window_seconds),
            workers=[self._worker(status, ages) for status in placer.pool.statuses(now)],
            waiting=self._waiting.figures().num_requests,
        )

    @property
    def _asks_clients(self) -> bool:
        return self._certificate is not None and self._certificate.served.asks_clients

    def _worker(
        self, status: MemberStatus, index_ages: Mapping[WorkerId, float]
    ) -> worker_pb2.WorkerStatus:
        worker = status.member.worker.worker_id
        hits = self._placer.books.hits_of(worker)
        return worker_pb2.WorkerStatus(
            member=member_to_pb(status.member),
            load=load_report_to_pb(status.report),
            serving=status.refusal is None,
            reason=status.refusal or "",
            report_age_seconds=status.report_age_s or 0.0,
            requests_in_flight=status.num_in_flight,
            cached_grains=self._placer.index.num_grains_of(worker),
            index_age_seconds=index_ages.get(worker, 0.0),
            watch_gaps=self._fleet.num_gaps(worker),
            predicted_hit_tokens=hits.num_predicted,
            actual_hit_tokens=hits.num_actual,
        )


def _check_spans(request: worker_pb2.ObserveRequest) -> None:
    """Raises InvalidRequest."""
    for field in ("window_seconds", "next_seconds", "start_seconds"):
        value = getattr(request, field)
        if not (0.0 <= value <= _MOST_S) or (field != "start_seconds" and not value):
            raise InvalidRequest(
                field, f"'{field}' is {value:g}: give seconds, {_MOST_S:,.0f} at most."
            )


def _relay_status(relayed: RelayCounters, placed: PlacerCounters) -> worker_pb2.RelayStatus:
    return worker_pb2.RelayStatus(
        messages=relayed.num_messages,
        tokens=relayed.num_tokens,
        placed=placed.num_placed,
        moved=placed.num_moved,
        predicted_hit_tokens=placed.hits.num_predicted,
        actual_hit_tokens=placed.hits.num_actual,
    )


def _order(status: MemberStatus) -> tuple[str, str]:
    return status.member.role, status.member.worker.worker_id
