"""Says how one member stands: its last report, what was placed on it since, and whether it is to
get more. It knows no other member and no prices; time comes in as an argument.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from cluster.config import check_range
from cluster.types import DecodeCost, LoadReport, Member, PrefillCost, Role
from router.load import FIRST_REPORTED, Load

SILENCE_S = (
    1.0  # two missed reports of a worker at rest, four of another: nothing more is sent there
)
_FIRST_BACKOFF_S = 0.25
_LAST_BACKOFF_S = 5.0
_STUCK_S = 0.5  # so long no step takes before the first request: younger ones are the start's

# What a worker reports before it has fitted a model.
_NO_PREFILL = PrefillCost(c0=0.0, c1=0.0)
_NO_DECODE = DecodeCost(d0=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """Holds what is taken to be true where nothing has been measured yet."""

    # seconds of a step: c0 + c1 * new tokens + c2 * context + c3 * new * context
    prefill: PrefillCost = field(default_factory=lambda: PrefillCost(c0=0.002, c1=2e-4))
    """Where the model or the processor is much faster or slower than that."""
    # seconds of a step: d0 + d1 * context of the batch + d2 * answers in it
    decode: DecodeCost = field(default_factory=lambda: DecodeCost(d0=0.01, d1=1e-7, d2=0.001))
    """Where the model or the processor is much faster or slower than that."""
    transfer_setup_s: float = 0.005  # of a hand-over, without its bytes: reserve, grant, close
    """Where workers are far from each other."""
    transfer_bytes_per_s: float = 1e9  # of KV between two workers
    """Where the network is slower, or is RDMA."""

    def __post_init__(self) -> None:
        check_range(self, "transfer_setup_s", at_least=0)
        check_range(self, "transfer_bytes_per_s", above=0)


@dataclass(slots=True, eq=False)
class Standing:
    """A member and its bookkeeping. Bookings are dropped when a report contains them."""

    member: Member
    lag_s: Callable[[], float]  # how long we were not there to hear, in all so far
    report: LoadReport = field(default_factory=LoadReport)
    reported_at: float | None = None
    lag_at_report_s: float = 0.0
    is_reachable: bool = True
    has_said_goodbye: bool = False
    num_failures: int = 0
    failed_at: float = 0.0
    lag_at_failure_s: float = 0.0
    prefills: dict[str, tuple[int, float]] = field(default_factory=dict)  # -> tokens, seconds
    decodes: dict[str, tuple[int, int]] = field(default_factory=dict)  # -> sequences, context
    reported: dict[str, tuple[int, int]] = field(default_factory=dict)  # its reports have them
    overtaken: dict[str, tuple[int, int]] = field(default_factory=dict)  # ended before a report
    num_ended: int = 0  # sequences that the last report still counts, and their context
    num_ended_context: int = 0
    base: Load | None = None  # what the last report says alone; None: to be made from it
    position: int | None = None  # among those that serve

    @property
    def is_leaving(self) -> bool:
        return self.report.is_draining or self.has_said_goodbye

    def refusal(self, now: float) -> str | None:
        """Says why nothing is sent here, or None."""
        return self.fault(now) or self._silence(now)

    def fault(self, now: float) -> str | None:
        """Says what is wrong with it besides that it may be silent."""
        report = self.report
        if report.is_draining:
            return "draining"
        if not self.is_reachable:
            return "unreachable"
        if self.reported_at is None:
            return "no report yet"
        if not report.is_serving:
            return _no_progress(report.step_age_s)
        if now < self.failed_at + self._backoff_s():
            return f"failed {now - self.failed_at:.1f} s ago"
        return None

    def _silence(self, now: float) -> str | None:
        if self.reported_at is None or self.silent_s(now) < SILENCE_S:
            return None
        return f"no report for {now - self.reported_at:.1f} s"

    def silent_s(self, now: float) -> float:
        """Says how long it has said nothing while we watched."""
        if self.reported_at is None:
            return inf
        return now - self.reported_at - (self.lag_s() - self.lag_at_report_s)

    def may_recover(self, now: float) -> bool:
        """Tells whether its fault may pass; of who cannot be reached that is not known."""
        return self.is_reachable and not self.is_leaving and self.fault(now) is not None

    def may_be_dead(self, now: float) -> bool:
        """Tells whether a call to it failed just now: if it died, its reports end soon."""
        since_s = now - self.failed_at - (self.lag_s() - self.lag_at_failure_s)
        return self.is_reachable and self.num_failures > 0 and since_s < SILENCE_S

    def is_reporting(self, now: float) -> bool:
        return self.is_reachable and self.silent_s(now) < SILENCE_S

    def changes_at(self, now: float) -> float:
        """Says when `refusal` may change by itself, at the earliest."""
        silent_at = now + SILENCE_S - self.silent_s(now)
        rested_at = self.failed_at + self._backoff_s()
        return min((at for at in (silent_at, rested_at) if at > now), default=inf)

    def load(self, assumed: Assumed) -> Load:
        """Its last report, and what came after it."""
        base = self.base
        if base is None:
            base = self.base = self.as_reported(assumed)
        if not (self.prefills or self.decodes or self.num_ended):
            return base
        num_sequences = num_context = num_tokens = 0
        booked_s = 0.0
        for count, context in self.decodes.values():
            num_sequences, num_context = num_sequences + count, num_context + context
        for tokens, seconds in self.prefills.values():
            num_tokens, booked_s = num_tokens + tokens, booked_s + seconds
        is_prefill = self.member.role is Role.PREFILL
        num_booked = len(self.prefills) if is_prefill else num_sequences
        num_running = max(0, base.num_running - self.num_ended)
        num_reported_context = max(0, base.num_context_tokens - self.num_ended_context)
        return Load._make(
            (
                base.worker,
                base.backlog,
                base.reported_s,
                booked_s,
                base.num_waiting + num_booked,
                num_running,
                base.num_waiting + len(self.prefills) + (num_running if is_prefill else 0),
                base.num_prefill_tokens + num_tokens,
                num_reported_context + num_context,
                base.num_free_tokens - num_context,
                _num_delayed(num_running + num_sequences, is_prefill=is_prefill),
                *base[FIRST_REPORTED:],
            )
        )

    def as_reported(self, assumed: Assumed) -> Load:
        """Its last report alone."""
        report, layout = self.report, self.member.worker.fingerprint.layout
        is_prefill = self.member.role is Role.PREFILL
        prefill = report.prefill_cost if report.prefill_cost != _NO_PREFILL else assumed.prefill
        decode = report.decode_cost if report.decode_cost != _NO_DECODE else assumed.decode
        reported_s = self.reported_at or 0.0
        return Load(
            self.member.worker.worker_id,
            tuple((reported_s + due_s, seconds) for due_s, seconds in report.backlog),
            reported_s,
            num_waiting=report.num_waiting,
            num_running=report.num_running,
            num_prompts=report.num_waiting + (report.num_running if is_prefill else 0),
            num_prefill_tokens=report.num_queued_tokens,
            num_context_tokens=report.num_context_tokens,
            num_free_tokens=report.num_free_blocks * layout.block_size - report.num_claimed_tokens,
            num_delayed=_num_delayed(report.num_running, is_prefill=is_prefill),
            num_total_tokens=report.num_blocks * layout.block_size or inf,
            num_unused_tokens=report.num_unused_blocks * layout.block_size,
            tail_reuse=report.tail_reuse,
            max_sequences=self.member.max_sequences or inf,
            token_bytes=layout.num_planes * layout.num_layers * layout.slot_bytes,
            c0=prefill.c0,
            c1=prefill.c1,
            c2=prefill.c2,
            c3=prefill.c3,
            d0=decode.d0,
            d1=decode.d1,
            d2=decode.d2,
            prefill_error=report.prefill_error.p90,
            decode_error=report.decode_error.p90,
        )

    def discount(self, weight: tuple[int, int] | None) -> None:
        """Discounts an answer that has ended, and that the last report still counts. Else who asks
        again at once, as a conversation does, finds its own last answer in the way."""
        if weight is not None:
            self.num_ended += weight[0]
            self.num_ended_context += weight[1]

    def _backoff_s(self) -> float:
        if self.num_failures == 0:
            return 0.0
        return min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** (self.num_failures - 1))


def _num_delayed(num_answers: float, *, is_prefill: bool) -> float:
    """One answer more than now: the worker is lost to whoever comes next, too."""
    return 0 if is_prefill else num_answers + 1


def _no_progress(step_age_s: float) -> str:
    if step_age_s < _STUCK_S:
        return "not ready yet: it has just started"
    return f"no progress: its step has run for {step_age_s:.1f} s"
