"""Learns from the requests that the router placed: lengths of answers, errors of its own
predictions, targets met. Time comes in as an argument."""

from dataclasses import dataclass, field

from cluster.types import WorkerId
from router.decaying import DecayingSums
from router.decision import Decision, PlacementRequest
from router.flight import Flight, Placed
from router.learned.accuracy import Accuracy, Attainment, Compared
from router.learned.lengths import AnswerLengths
from router.learned.traffic import Arrival, Traffic
from router.policy_settings import ServiceClass
from router.records import Fate

_HALF_LIFE_S = 5.0  # of the prompts that a decode worker computes: about as long as an answer
_MAX_WORKERS = 4096


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

    def came(
        self,
        flight: Flight,
        request: PlacementRequest,
        decision: Decision | None,
        now_s: float,
    ) -> None:
        """Once a request, whether it could be placed or not."""
        if flight.arrival is not None or not self.traffic.is_kept(now_s):
            return
        ask = flight.ask
        flight.arrival = Arrival(
            arrived_at=ask.arrived_at,
            num_prompt_tokens=ask.num_prompt_tokens,
            num_cached_tokens=decision.num_cached_tokens if decision else 0,
            num_output_tokens=request.num_output_tokens,
            target_ttft_s=flight.targets.ttft_s,
            target_itl_s=flight.targets.itl_s,
            num_reusable=self.traffic.reuse.of(ask.hashes, request.grain_tokens),
        )
        self.traffic.begin(flight.arrival)

    def placed(
        self, targets: ServiceClass, decision: Decision, now_s: float, *, is_first: bool = True
    ) -> None:
        self.attainment.of(targets.name).num_placed += is_first
        if decision.placement.prefill is None:
            self.local_s.add(decision.placement.decode, decision.prefill_s, now_s)

    def first_token(
        self, flight: Flight, placed: Placed, num_cached_tokens: int, now_s: float
    ) -> None:
        placed.first_s = now_s
        self.accuracy.first_token(
            Compared(now_s - placed.at_s, placed.decision.ttft_s),
            Compared(num_cached_tokens, placed.decision.num_cached_tokens),
            now_s,
        )
        ttft_s, targets = now_s - flight.ask.arrived_at, flight.targets
        counters = self.attainment.of(targets.name)
        counters.num_started += 1
        counters.num_in_time += ttft_s <= targets.ttft_s
        if arrival := flight.arrival:
            arrival.num_cached_tokens, arrival.ttft_s = num_cached_tokens, ttft_s

    def ended(self, flight: Flight, fate: Fate, num_tokens: int, now_s: float) -> None:
        if fate is Fate.FINISHED and flight.placed:
            self._finished(flight, flight.placed, num_tokens / flight.ask.num_choices, now_s)
        if arrival := flight.arrival:
            arrival.ended_s, arrival.is_lost = now_s, fate is Fate.FAILED

    def _finished(self, flight: Flight, placed: Placed, num_steps: float, now_s: float) -> None:
        num_gaps = max(1.0, num_steps - 1.0)
        self.lengths.observe(flight.kind, round(num_steps))
        counters = self.attainment.of(flight.targets.name)
        counters.num_finished += 1
        if placed.first_s is not None:
            itl_s = (now_s - placed.first_s) / num_gaps
            counters.num_steady += itl_s <= flight.targets.itl_s
            if num_steps >= 2.0:
                self.accuracy.answered(Compared(itl_s, placed.decision.itl_s), now_s)
        arrival = flight.arrival
        if arrival is not None and arrival.ttft_s is not None:
            arrival.num_output_tokens = num_steps
            arrival.itl_s = (now_s - arrival.arrived_at - arrival.ttft_s) / num_gaps
