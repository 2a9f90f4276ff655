"""Asks every process, then moves bytes between every pair; within a time limit.

Each question has one answer: facts or why there are none. What they mean is decided elsewhere.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.authority import Credentials
from cluster.channel import Channel, open_channel
from cluster.diagnosis import Diagnosis
from cluster.errors import DeadlineExceeded, FingerprintMismatch, PenstockError
from cluster.facts import ProcessFacts
from cluster.facts_codec import facts_from_pb
from cluster.proof import ANYONE, audience_of
from cluster.secrets import load_secrets
from cluster.types import Member, Role
from cluster.worker_codec import address_to_pb, member_from_pb
from deploy.doctor.cluster_checks import callers, certificate, check_cluster, front_door, ways
from deploy.doctor.finding import Examined, Finding, Probed, Severity, worst
from deploy.doctor.pair_checks import (
    PairProbe,
    PairResult,
    faster_transports,
    impossible,
    judge,
)
from deploy.doctor.process_checks import check_process
from penstock.v1 import worker_pb2

ANSWER_S = 3.0  # for one question; the whole has its own limit
PROBE_S = 10.0  # for one move of bytes
LARGE_BYTES = 64 << 20
NUM_LARGE = 3  # the best counts: the first touches memory for the first time
HERE = "this command"
_WORKER, _CLUSTER = "penstock.v1.Worker", "penstock.v1.Cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    address: str
    pairs: tuple[PairResult, ...]
    findings: tuple[Finding, ...]  # of processes and the cluster; pairs have their own

    @property
    def severity(self) -> Severity:
        return worst(
            (*(pair.severity for pair in self.pairs), *(each.severity for each in self.findings))
        )


class Examination:
    """One visit to one cluster. `async with` closes its connections."""

    def __init__(self, router: str, secrets_file: Path, *, say: Callable[[str], None]) -> None:
        """`say` hears what is being looked at."""
        secrets = load_secrets(secrets_file)
        self._router = router
        self._token = secrets.cluster_token
        self._credentials = Credentials(secrets.authority)
        self._secrets_file = secrets_file
        self._say = say
        self._channels: dict[str, Channel] = {}
        self._open = AsyncExitStack()

    async def report(
        self, status: worker_pb2.StatusResponse, expected: Sequence[str], *, timeout_s: float
    ) -> DoctorReport:
        """`status`: the cluster as its router sees it; `expected`: workers that were started,
        whether or not the router knows them."""
        deadline = time.monotonic() + timeout_s
        workers = [_from_status(worker) for worker in status.workers]
        self._say(f"Asking {len(workers)} workers about themselves and their machines.")
        router = Examined(name="router", address=self._router)
        answers = [self._examined(one, deadline) for one in (router, *workers)]
        everyone = await self._measured(await asyncio.gather(*answers), deadline)
        everyone.append(await self._here())
        pairs = [
            judge(await self._probed(source, receiver, deadline))
            for source in everyone
            for receiver in everyone
            if _is_pair(source, receiver)
        ]
        has_tls = status.HasField("certificate")
        findings = [finding for one in everyone for finding in check_process(one)]
        return DoctorReport(
            address=self._router,
            pairs=tuple(pairs),
            findings=(
                *findings,
                *front_door(
                    status.listens,
                    is_insecure=status.insecure,
                    is_plain=status.plain,
                    has_tls=has_tls,
                ),
                *(_certificate(status.certificate) if has_tls else ()),
                *callers(
                    status.callers.error,
                    num_keys=status.callers.keys if status.callers.asked else None,
                    num_unchecked=status.callers.unchecked,
                ),
                *ways(status.internal, everyone, can_encrypt=self._credentials.can_encrypt),
                *check_cluster(everyone, expected),
            ),
        )

    async def __aenter__(self) -> "Examination":
        await self._open.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    # -- processes -----------------------------------------------------------------------

    async def _examined(self, one: Examined, deadline: float) -> Examined:
        begin, began_at = time.perf_counter(), time.time()
        try:
            facts = await self._facts(one, deadline)
        except PenstockError as error:
            return replace(one, problem=error.message)
        round_trip_s = time.perf_counter() - begin
        return replace(
            one,
            facts=facts,
            round_trip_s=round_trip_s,
            clock_ahead_s=facts.unix_s - (began_at + round_trip_s / 2),
        )

    async def _measured(self, everyone: Sequence[Examined], deadline: float) -> list[Examined]:
        """Adds each machine's memory speed, which one worker of it measures: several at once
        would measure each other."""
        firsts = {one.facts.machine: one for one in reversed(everyone) if one.member and one.facts}
        speeds = await asyncio.gather(*(self._speed(one, deadline) for one in firsts.values()))
        speed_of = dict(zip(firsts, speeds, strict=True))
        return [
            replace(one, memory_bytes_per_s=speed_of.get(one.facts.machine, 0.0))
            if one.facts
            else one
            for one in everyone
        ]

    async def _speed(self, one: Examined, deadline: float) -> float:
        try:
            return (await self._facts(one, deadline, measures_memory=True)).memory_bytes_per_s
        except PenstockError:
            return 0.0  # then no speed is expected of its pairs

    async def _facts(
        self, one: Examined, deadline: float, *, measures_memory: bool = False
    ) -> ProcessFacts:
        channel = await self._channel(one)
        service = _CLUSTER if one.member is None else _WORKER
        request = worker_pb2.DiagnoseRequest(measure_memory=measures_memory)
        return facts_from_pb(
            await channel.unary(service, "Diagnose", request, timeout_s=_left_s(deadline, ANSWER_S))
        )

    async def _here(self) -> Examined:
        """Its versions and its copy of the secrets are part of the cluster, too."""
        facts = await Diagnosis(secrets_file=self._secrets_file).facts()
        return Examined(name=HERE, facts=facts)

    # -- pairs ---------------------------------------------------------------------------

    async def _probed(self, source: Examined, receiver: Examined, deadline: float) -> PairProbe:
        """One pair after the other: they would measure each other."""
        probe = PairProbe(source=source, receiver=receiver)
        assert source.member is not None
        assert receiver.member is not None
        if time.monotonic() >= deadline:
            return replace(probe, is_skipped=True)
        if source.facts is None or receiver.facts is None:
            return probe
        if diff := impossible(source.member, receiver.member):
            text = f"they differ in {'; '.join(diff)}"
            return replace(probe, failure=FingerprintMismatch(text))
        self._say(f"Moving bytes: {probe.name}.")
        num_tokens = large_tokens(source, receiver)
        try:
            small = await self._move(source, receiver, _block_size(receiver), "", deadline)
            moves = [
                await self._move(source, receiver, num_tokens, "", deadline)
                for _ in range(NUM_LARGE)
            ]
        except PenstockError as error:
            return replace(probe, failure=error)
        passed_over = {
            transport: reason
            for transport in faster_transports(source, receiver, small.transport)
            if (reason := await self._refusal(source, receiver, transport, deadline))
        }
        large = max(moves, key=lambda moved: moved.bytes_per_s)
        return replace(probe, small=small, large=large, passed_over=passed_over)

    async def _refusal(
        self, source: Examined, receiver: Examined, transport: str, deadline: float
    ) -> str:
        """Finds out why a transport does not join two workers, in the receiver's words."""
        try:
            await self._move(source, receiver, _block_size(receiver), transport, deadline)
        except PenstockError as error:
            return error.message
        return "it works now; the pair was joined when it did not"

    async def _move(
        self,
        source: Examined,
        receiver: Examined,
        num_tokens: int,
        transport: str,
        deadline: float,
    ) -> Probed:
        assert source.member is not None
        channel = await self._channel(receiver)
        request = worker_pb2.ProbeRequest(
            source=address_to_pb(source.member.worker), num_tokens=num_tokens, transport=transport
        )
        answer: worker_pb2.ProbeResponse = await channel.unary(
            _WORKER, "Probe", request, timeout_s=_left_s(deadline, PROBE_S)
        )
        return Probed(
            transport=answer.transport,
            num_bytes=answer.num_bytes,
            seconds=answer.seconds,
            write_s=answer.write_seconds,
        )

    async def _channel(self, one: Examined) -> Channel:
        if one.address not in self._channels:
            audience = ANYONE if one.member is None else audience_of(one.member.worker)
            channel = open_channel(
                one.address, self._token, audience, credentials=self._credentials
            )
            self._channels[one.address] = await self._open.enter_async_context(channel)
        return self._channels[one.address]


def _certificate(shown: worker_pb2.CertificateStatus) -> Iterator[Finding]:
    return certificate(
        shown.names,
        left_s=shown.left_seconds,
        asks_clients=shown.asks_clients,
        error=shown.error,
    )


def large_tokens(source: Examined, receiver: Examined) -> int:
    """Enough to measure a bandwidth, and no more than half of what either has free: the
    cluster may be at work."""
    fitting = []
    for one in (source, receiver):
        assert one.member is not None
        layout = one.member.worker.fingerprint.layout
        token_bytes = layout.pool_bytes // (layout.num_blocks * layout.block_size)
        fitting += [LARGE_BYTES // token_bytes, one.num_free_blocks // 2 * layout.block_size]
    return max(1, min(fitting))


def _block_size(one: Examined) -> int:
    assert one.member is not None
    return one.member.worker.fingerprint.layout.block_size


def _is_pair(source: Examined, receiver: Examined) -> bool:
    if source.member is None or receiver.member is None:
        return False
    ends = source.member.worker.fingerprint, receiver.member.worker.fingerprint
    if ends[0].wire_version != ends[1].wire_version:  # exchange nothing, and are named for it
        return False
    return source.member.role is Role.PREFILL and receiver.member.role is Role.DECODE


def _from_status(worker: worker_pb2.WorkerStatus) -> Examined:
    member: Member = member_from_pb(worker.member)
    return Examined(
        name=member.worker.worker_id,
        address=member.worker.address,
        member=member,
        not_serving="" if worker.serving else worker.reason or "no reason was given",
        num_free_blocks=worker.load.num_free_blocks,
    )


def _left_s(deadline: float, at_most_s: float) -> float:
    """Gives the time for one call. Raises DeadlineExceeded when the time for everything is up."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise DeadlineExceeded("an examination")
    return min(at_most_s, left_s)
