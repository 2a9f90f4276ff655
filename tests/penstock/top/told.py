"""Pages as routers and workers tell them, with figures that a test chooses."""

from collections.abc import Iterable, Mapping
from typing import Final

from cluster.metrics.metric import Kind, Metric, scraped
from cluster.metrics.process import PROCESS
from penstock.cli.top.samples import samples
from penstock.cli.top.track import Scrape, Track
from router.metrics.table import ROUTER
from worker.metrics import WORKER

KINDS: Final = {each.name: each.kind for each in (*ROUTER, *WORKER, *PROCESS)}
Labels = Mapping[str, str]
Numbers = Mapping[str, float]  # by a series as it is written, without `_total`


def series(name: str, **labels: str) -> str:
    """Writes a series of a metric that there is, as a page has it."""
    return name + ("{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}")


def page(part: str, numbers: Numbers, *, uptime_s: float = 100.0) -> str:
    """A process's page: `numbers` by `series`, of metrics in the tables alone."""
    lines = [f'penstock_build_info{{version="0.1.0",model="m",part="{part}"}} 1.0']
    lines.append(f"penstock_event_loop_lag_seconds_count {4 * uptime_s}")
    for key, value in numbers.items():
        name, brace, labels = key.partition("{")
        lines.append(f"{_scraped(name)}{brace}{labels} {value}".replace("{}", ""))
    return "# HELP of no interest\n" + "\n".join(lines) + "\n"


def histogram(
    name: str, values: Iterable[float], bounds: Iterable[float], **labels: str
) -> Numbers:
    """A histogram with these values, as lines of a page."""
    told, known = {}, list(values)
    for bound in (*bounds, float("inf")):
        le = "+Inf" if bound == float("inf") else str(bound)
        told[series(f"{name}_bucket", **labels, le=le)] = sum(each <= bound for each in known)
    told[series(f"{name}_count", **labels)] = len(known)
    told[series(f"{name}_sum", **labels)] = sum(known)
    return told


def track(
    *pages: tuple[float, str], keep_s: float = 300.0, turns: tuple[str, str] | None = None
) -> Track:
    """What remains of pages told at these moments."""
    kept = Track(keep_s, turns)
    for at, text in pages:
        kept.add(Scrape(at, samples(text)))
    return kept


def _scraped(name: str) -> str:
    """Fails for a metric that nobody tells."""
    for suffix in ("_bucket", "_count", "_sum"):
        if name.endswith(suffix) and KINDS.get(name.removesuffix(suffix)) is Kind.HISTOGRAM:
            return name
    return scraped(name, KINDS[name])


def names(metrics: Iterable[Metric[object]]) -> set[str]:
    return {each.scraped_name for each in metrics}
