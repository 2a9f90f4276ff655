"""Puts what the router learned of the requests that it placed into messages for who asks."""

from collections.abc import Iterator

from cluster.prediction_codec import errors_to_pb
from cluster.worker_codec import ROLES
from penstock.v1 import worker_pb2
from router.absences import Absences
from router.callers.callers import Callers
from router.callers.quotas import Quotas
from router.learned.accuracy import Accuracy, ClassCounters, Errors
from router.learned.lengths import AnswerKind
from router.learned.traffic import Arrival, Traffic
from router.placer import Placer
from router.policy_settings import DEFAULT_TENANT, ServiceClass
from router.tls.follow import DoorCertificate
from router.waiting import WaitingRoom

_NO_LIMIT = 1 << 30


def accuracy_to_pb(accuracy: Accuracy) -> worker_pb2.AccuracyStatus:
    return worker_pb2.AccuracyStatus(
        ttft=_errors_to_pb(accuracy.ttft),
        itl=_errors_to_pb(accuracy.itl),
        cached_tokens=_errors_to_pb(accuracy.cached_tokens),
    )


def classes_to_pb(placer: Placer) -> Iterator[worker_pb2.ClassStatus]:
    """Gives the classes of the policy in force, used or not, and others that were used."""
    known = {each.name: each for each in placer.generations.active.policy.classes}
    used = placer.books.observed.attainment.by_class()
    for name in sorted(known.keys() | used.keys()):
        message = _class_to_pb(name, known.get(name), used.get(name, ClassCounters()))
        kind = AnswerKind(name, DEFAULT_TENANT)
        message.answer_tokens = placer.books.observed.lengths.predicted(kind, _NO_LIMIT)
        yield message


def tenants_to_pb(placer: Placer, now_s: float) -> Iterator[worker_pb2.TenantStatus]:
    shares = placer.generations.active.policy.tenants
    for tenant, used_s in placer.books.tenants.used_s(now_s).items():
        yield worker_pb2.TenantStatus(
            name=tenant,
            used_seconds=used_s,
            excess=placer.books.tenants.excess(tenant, shares, now_s),
        )


def callers_to_pb(callers: Callers, quotas: Quotas) -> worker_pb2.CallersStatus:
    return worker_pb2.CallersStatus(
        asked=callers.are_asked,
        keys=len(callers.table.keys) if callers.table else 0,
        error=callers.error,
        refused=callers.num_refused,
        unchecked=quotas.num_unchecked,
    )


def certificate_to_pb(shown: DoorCertificate | None) -> worker_pb2.CertificateStatus | None:
    """None: the front doors speak no TLS."""
    if shown is None:
        return None
    return worker_pb2.CertificateStatus(
        left_seconds=shown.served.left_s(),
        names=shown.served.facts.names,
        asks_clients=shown.served.asks_clients,
        error=shown.error,
    )


def waiting_to_pb(room: WaitingRoom) -> worker_pb2.WaitingStatus:
    num_requests, num_bytes, longest_s = room.figures()
    return worker_pb2.WaitingStatus(
        requests=num_requests, bytes=num_bytes, longest_seconds=longest_s
    )


def away_to_pb(absences: Absences, now_s: float) -> Iterator[worker_pb2.AwayWorker]:
    for absence in absences.away(now_s):
        yield worker_pb2.AwayWorker(
            worker_id=absence.worker,
            role=ROLES[absence.role],
            away_seconds=now_s - absence.since,
            expected=absences.is_expected(absence, now_s),
            deaths=absences.num_deaths(absence.worker, now_s),
            crash_looping=absences.is_crash_looping(absence.worker, now_s),
        )


def seen_to_pb(traffic: Traffic, now_s: float, window_s: float) -> Iterator[worker_pb2.SeenRequest]:
    for each in traffic.arrivals:
        if each.arrived_at >= now_s - window_s:
            yield _arrival_to_pb(each, now_s)


def _arrival_to_pb(arrival: Arrival, now_s: float) -> worker_pb2.SeenRequest:
    return worker_pb2.SeenRequest(
        age_seconds=now_s - arrival.arrived_at,
        prompt_tokens=arrival.num_prompt_tokens,
        cached_tokens=arrival.num_cached_tokens,
        output_tokens=arrival.num_output_tokens,
        target_ttft_seconds=arrival.target_ttft_s,
        target_itl_seconds=arrival.target_itl_s,
        reusable_tokens=arrival.num_reusable,
        ttft_seconds=arrival.ttft_s,
        itl_seconds=arrival.itl_s,
        lost=arrival.is_lost,
    )


def arrival_from_pb(message: worker_pb2.SeenRequest, now_s: float) -> Arrival:
    return Arrival(
        arrived_at=now_s - message.age_seconds,
        num_prompt_tokens=message.prompt_tokens,
        num_cached_tokens=message.cached_tokens,
        num_output_tokens=message.output_tokens,
        target_ttft_s=message.target_ttft_seconds,
        target_itl_s=message.target_itl_seconds,
        num_reusable=tuple(message.reusable_tokens),
        ttft_s=message.ttft_seconds if message.HasField("ttft_seconds") else None,
        itl_s=message.itl_seconds if message.HasField("itl_seconds") else None,
        is_lost=message.lost,
    )


def _class_to_pb(
    name: str, service: ServiceClass | None, counters: ClassCounters
) -> worker_pb2.ClassStatus:
    return worker_pb2.ClassStatus(
        name=name,
        ttft_seconds=service.ttft_s if service else 0.0,
        itl_seconds=service.itl_s if service else 0.0,
        patience_seconds=service.patience_s if service else 0.0,
        placed=counters.num_placed,
        rejected=counters.num_rejected,
        started=counters.num_started,
        in_time=counters.num_in_time,
        finished=counters.num_finished,
        steady=counters.num_steady,
    )


def _errors_to_pb(errors: Errors) -> worker_pb2.PredictionErrors:
    return worker_pb2.PredictionErrors(
        samples=errors.num_known, ratio=errors_to_pb(errors.ratios), bias=errors.bias
    )
