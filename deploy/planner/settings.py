"""What an operator decides about growing and shrinking, and the bounds of the pools."""

from dataclasses import dataclass, field

from cluster.bounds import check_above, check_between
from cluster.document.keys import meaning
from cluster.types import Role

MAX_WORKERS = 128  # of a role


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds the number of workers of each role."""

    least_prefill: int = field(default=0, metadata=meaning("0: the pool may be cold"))
    most_prefill: int = field(default=16, metadata=meaning("so many at most"))
    least_decode: int = field(default=1, metadata=meaning("0: the pool may be cold"))
    most_decode: int = field(default=16, metadata=meaning("so many at most"))
    may_flip: bool = field(
        default=True, metadata=meaning("whether a worker of one role can take the other")
    )

    def __post_init__(self) -> None:
        for role in Role:
            least, most = self.of(role)
            check_between(f"the fewest {role} workers", least, least=0, most=MAX_WORKERS)
            check_between(f"the most {role} workers", most, least=least, most=MAX_WORKERS)
        if not self.most_decode:
            raise ValueError("Without decode workers there is no answer: give one at least.")

    def of(self, role: Role) -> tuple[int, int]:
        if role is Role.PREFILL:
            return self.least_prefill, self.most_prefill
        return self.least_decode, self.most_decode


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerSettings:
    goal: float = field(
        default=0.95,
        metadata=meaning("share of the requests that any number of workers would serve in time"),
    )
    head_room: float = field(
        default=1.1, metadata=meaning("times the traffic that was seen, when workers are asked for")
    )
    window_s: float = field(
        default=600.0, metadata=meaning("of traffic that is looked at, at least")
    )
    most_window_s: float = field(
        default=1800.0, metadata=meaning("of traffic that is looked at while it stays as fast")
    )
    hold_s: float = field(
        default=600.0, metadata=meaning("between two reversals of direction, at least")
    )
    calm_s: float = field(
        default=600.0, metadata=meaning("so long fewer must have been enough before one goes")
    )
    catch_up_s: float = field(
        default=300.0, metadata=meaning("in so long a queue should be worked off")
    )

    interval_s: float = field(default=5.0, metadata=meaning("between two looks"))
    start_s: float = field(
        default=300.0,
        metadata=meaning(
            "so long a request waits at most for the first worker of a pool that is cold"
        ),
    )
    leave_s: float = field(
        default=600.0,
        metadata=meaning(
            "left to what is in progress at a worker that goes; then it goes on elsewhere"
        ),
    )
    dry_run: bool = field(
        default=False, metadata=meaning("true: it says what it would do, and does nothing")
    )

    def __post_init__(self) -> None:
        check_between("'interval_s'", self.interval_s, "s", least=0.5, most=30.0)
        for name in ("start_s", "leave_s"):
            check_between(f"'{name}'", getattr(self, name), "s", least=1.0, most=86_400.0)
        check_above("the goal", self.goal, least=0.0, most=1.0)
        check_between("the head-room", self.head_room, least=1.0, most=10.0)
        for name in ("window_s", "most_window_s", "catch_up_s"):
            check_between(f"'{name}'", getattr(self, name), "s", least=10.0, most=86_400.0)
        for name in ("hold_s", "calm_s"):
            check_between(f"'{name}'", getattr(self, name), "s", least=0.0, most=86_400.0)
