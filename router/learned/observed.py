"""What the router learns from the requests that it placed: lengths of answers, errors of its own
predictions, targets met. Time comes in as an argument."""

from dataclasses import dataclass, field

from cluster.types import WorkerId
from router.decaying import DecayingSums
from router.learned.accuracy import Accuracy, Compared
from router.learned.attainment import Attainment
from router.learned.lengths import AnswerLengths, Kind
from router.learned.traffic import Traffic
from router.policy import Decision
from router.policy_settings import ServiceClass

_HALF_LIFE_S = 5.0  # of the prompts that a decode worker computes: about as long as an answer
_MAX_WORKERS = 4096


@dataclass(slots=True, eq=False, kw_only=True)
class Placed:
    """A request from its placement to its end, or to its next placement."""

    tenant: str
    targets: ServiceClass
    decision: Decision
    arrived_s: float
    placed_s: float
    num_choices: int
    first_s: float | None = None  # None: no token yet, or its first ones came from elsewhere

    @property
    def kind(self) -> Kind:
        return Kind(self.targets.name, self.tenant)


@dataclass(slots=True, eq=False)
class Observed:
    """Owned by one placer."""

    lengths: AnswerLengths = field(default_factory=AnswerLengths)
    accuracy: Accuracy = field(default_factory=Accuracy)
    attainment: Attainment = field(default_factory=Attainment)
    traffic: Traffic = field(default_factory=Traffic)
    # Seconds of prompts placed on those who decode, too, by worker.
    local_s: DecayingSums[WorkerId] = field(
        default_factory=lambda: DecayingSums(_HALF_LIFE_S, _MAX_WORKERS)
    )

    def placed(self, decision: Decision, now_s: float) -> None:
        if decision.placement.prefill is None:
            self.local_s.add(decision.placement.decode, decision.prefill_s, now_s)

    def first_token(self, placed: Placed, num_cached_tokens: int, now_s: float) -> None:
        placed.first_s = now_s
        self.accuracy.first_token(
            Compared(now_s - placed.placed_s, placed.decision.ttft_s),
            Compared(num_cached_tokens, placed.decision.num_cached_tokens),
            now_s,
        )
        counters = self.attainment.of(placed.targets.name)
        counters.num_started += 1
        counters.num_in_time += now_s - placed.arrived_s <= placed.targets.ttft_s

    def finished(self, placed: Placed, num_tokens: int, now_s: float) -> None:
        """`num_tokens` of all its choices together, whoever computed them."""
        num_steps = num_tokens / placed.num_choices
        self.lengths.observe(placed.kind, round(num_steps))
        counters = self.attainment.of(placed.targets.name)
        counters.num_finished += 1
        if placed.first_s is None:
            return
        itl_s = (now_s - placed.first_s) / max(1.0, num_steps - 1.0)
        counters.num_steady += itl_s <= placed.targets.itl_s
        if num_steps >= 2.0:
            self.accuracy.answered(Compared(itl_s, placed.decision.itl_s), now_s)
