"""Labels that metrics of several processes share, with their bounds."""

from typing import Final

from cluster.metrics.metric import Label
from cluster.types import ErrorQuantiles

MAX_WORKERS: Final = 1024  # of a cluster
ROLE: Final = Label("role", ("prefill", "decode"))
MEMBER: Final = Label("worker", at_most=MAX_WORKERS, meaning="a member's name")
PERCENTILE: Final = Label("percentile", ("p50", "p90", "p99"))


def by_percentile(ratios: ErrorQuantiles) -> dict[str, float]:
    return {"p50": ratios.p50, "p90": ratios.p90, "p99": ratios.p99}
