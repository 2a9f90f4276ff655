"""Reads what bytes moved between two workers tell: pure functions from a probe to findings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.errors import DeadlineExceeded, DigestMismatch, PenstockError, ResourceError
from cluster.fingerprint import kv_mismatch, loss_refused
from cluster.types import Member
from deploy.doctor.finding import Examined, Finding, Probed, Severity, failed, passed, warned, worst
from kv_transfer.doors import DOORS

# The least part of a memory copy's speed that a transport should reach, whatever else runs: by
# what it does with a byte. One copy; one by the kernel, or what an RDMA card makes of it; through
# a device's memory; two copies and a protocol; the same, gathered before and scattered after.
EXPECTED_SHARE: Mapping[str, float] = {
    "shared_memory": 0.2,
    "nixl": 0.1,
    "tcp": 0.05,
    "nccl": 0.05,
    "gloo": 0.02,
}
SETUP_S = 0.01  # of a transfer, whatever its size
MAX_LATENCY_S = 0.1
_OF_ONE_MACHINE = frozenset({"shared_memory"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PairProbe:
    """Holds what came of asking `receiver` to fetch from `source`."""

    source: Examined
    receiver: Examined
    small: Probed | None = None  # one block: for the latency
    large: Probed | None = None
    failure: PenstockError | None = None
    is_skipped: bool = False  # the time was up
    passed_over: Mapping[str, str] = field(default_factory=dict)  # faster transport -> why not

    @property
    def name(self) -> str:
        return f"{self.source.name} -> {self.receiver.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResult:
    """One row of the doctor's table."""

    source: str
    receiver: str
    probe: PairProbe
    findings: tuple[Finding, ...]

    @property
    def severity(self) -> Severity:
        return worst(finding.severity for finding in self.findings)


def judge(probe: PairProbe) -> PairResult:
    return PairResult(
        source=probe.source.name,
        receiver=probe.receiver.name,
        probe=probe,
        findings=tuple(_findings(probe)),
    )


def faster_transports(source: Examined, receiver: Examined, used: str) -> Sequence[str]:
    """Gives the transports that both ends list and that should have been chosen before the used
    one."""
    if source.member is None or receiver.member is None:
        return ()
    if receiver.facts is not None and receiver.facts.required_transport is not None:
        return ()  # as somebody wished
    both = source.member.worker.transports.keys() & receiver.member.worker.transports.keys()
    if _are_apart(source, receiver):
        both -= _OF_ONE_MACHINE
    order = [name for name in DOORS if name in both or name == used]
    return order[: order.index(used)] if used in order else ()


def expected_s(probed: Probed, memory_bytes_per_s: float) -> float:
    """The longest that writing so much should take."""
    share = EXPECTED_SHARE.get(probed.transport, min(EXPECTED_SHARE.values()))
    return SETUP_S + probed.num_bytes / (share * memory_bytes_per_s)


def impossible(source: Member, receiver: Member) -> list[str]:
    """Says why KV of one may never be read by the other, a line each."""
    ours, theirs = source.worker.fingerprint, receiver.worker.fingerprint
    return kv_mismatch(ours, theirs) or loss_refused(ours, theirs)


def _findings(probe: PairProbe) -> Iterator[Finding]:
    if probe.is_skipped:
        fix = "Give it more: --timeout."
        yield failed("pair", probe.name, "nothing was moved: the time was up", fix)
        return
    if probe.failure is not None:
        yield _failure(probe.name, probe.failure)
        return
    moved = [probed for probed in (probe.small, probe.large) if probed is not None]
    if not moved:
        fix = "Make the processes answer first."
        yield failed("pair", probe.name, "nothing was moved: an end does not answer", fix)
        return
    problems = [*_fallbacks(probe), *_slowness(probe)]
    yield from problems
    if not problems:
        num_bytes = max(probed.num_bytes for probed in moved)
        said = f"{num_bytes:,} bytes arrived as they were sent, by {moved[-1].transport}"
        yield passed("pair", probe.name, said)


def _failure(name: str, error: PenstockError) -> Finding:
    if isinstance(error, DigestMismatch):
        return failed(
            "pair",
            name,
            f"bytes do not arrive as they were sent: {error.message}",
            "Take both workers out of service; test the memory and the network of their"
            " machines, or use another transport.",
        )
    if isinstance(error, ResourceError):
        fix = "Ask again when it is less busy, or serve with more blocks."
        return warned("pair", name, f"it was too busy to be measured: {error.message}", fix)
    if isinstance(error, DeadlineExceeded):
        return failed(
            "pair",
            name,
            "nothing arrived in time",
            "See whether both processes make progress ('penstock status'), and whether the"
            " receiver's transport port is open to the source.",
        )
    return failed("pair", name, f"no bytes move: {error.message}", _FIXES.get(error.reason, _FIX))


_FIX = (
    "Give both ends a transport in common ('transports'), and open its way between their"
    " machines; requests of this pair are computed by the decode worker until then."
)
_FIXES = {
    "FINGERPRINT_MISMATCH": "Start both from the same checkpoint, with the same settings.",
    "WORKER_LOST": "See whether both processes live and what their logs say.",
    "UNSUPPORTED_FEATURE": "Run the same release everywhere: one of them cannot be probed.",
}


def _fallbacks(probe: PairProbe) -> Iterator[Finding]:
    used = (probe.large or probe.small or _NOTHING).transport
    for transport, reason in probe.passed_over.items():
        yield warned(
            "transport",
            probe.name,
            f"it uses {used}, although both have {transport}, which is faster: {reason}",
            f"Mend what keeps {transport} from working, or take it out of 'transports'.",
        )


def _slowness(probe: PairProbe) -> Iterator[Finding]:
    if probe.small is not None and probe.small.seconds > MAX_LATENCY_S:
        yield warned(
            "latency",
            probe.name,
            f"one block took {probe.small.seconds * 1e3:.0f} ms",
            "See what keeps either process or the way between them busy.",
        )
    speed = _memory_speed(probe)
    if probe.large is not None and speed > 0:
        limit_s = expected_s(probe.large, speed)
        if probe.large.write_s > limit_s:
            yield warned(
                "bandwidth",
                probe.name,
                f"{probe.large.transport} moved {probe.large.bytes_per_s / 1e9:.2f} GB/s where"
                f" memory is copied at {speed / 1e9:.1f}: less than"
                f" {probe.large.num_bytes / limit_s / 1e9:.2f} is slow for it",
                "See what else uses the CPUs and the network of both, and ask again.",
            )


def _memory_speed(probe: PairProbe) -> float:
    """Gives the slower machine's memory speed; 0 where it was not measured."""
    return min(probe.source.memory_bytes_per_s, probe.receiver.memory_bytes_per_s)


def _are_apart(source: Examined, receiver: Examined) -> bool:
    here, there = source.facts, receiver.facts
    return here is not None and there is not None and here.machine != there.machine


_NOTHING = Probed(transport="no transport", num_bytes=0, seconds=0.0, write_s=0.0)
