"""Figures of one worker, from what it told. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from penstock.cli.top.samples import BUILD, Samples, label, labels_of, value
from penstock.cli.top.track import Difference, Track, buckets, increase, rate, share

_PAIR: Final = ("peer", "direction", "transport")


class WorkerHealth(StrEnum):
    SERVING = "serving"
    DRAINING = "draining"
    NOT_SERVING = "not serving"
    NO_ANSWER = "no answer"  # to who scrapes
    LEFT = "left"  # the router lists it no more
    UNKNOWN = "unknown"  # it has not been looked at yet


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFigures:
    """None: it is not told, or nothing happened within the window."""

    name: str
    role: str
    health: WorkerHealth
    since_s: float | None = None  # that it has not answered, or left
    error: str = ""  # why it does not answer
    queue_s: float | None = None  # predicted
    num_running: float | None = None
    num_waiting: float | None = None
    kv_usage: float | None = None  # share of the pool
    hit_share: float | None = None  # of the prompts' tokens, those whose KV was found here
    gb_per_s: float | None = None  # while KV moved
    itl_s: float | None = None  # median; of a prefill worker its steps' are no gaps between tokens
    step_p50_s: float | None = None
    step_p99_s: float | None = None
    tokens_per_s: float | None = None  # through the model
    moved_bytes_per_s: float | None = None  # of all the window
    num_failed: float | None = None  # transfers of the window
    version: str = ""


class PairFigures(NamedTuple):
    """KV between a worker and a peer, within the window; None: none moved."""

    peer: str
    direction: str
    transport: str
    gb_per_s: float | None  # while it moved
    mean_s: float | None  # of a transfer's writes
    p99_s: float | None
    moved_bytes_per_s: float
    num_transfers: float
    num_failed: float


class LinkFigures(NamedTuple):
    """What KV from a peer costs, as measured."""

    peer: str
    setup_s: float
    gb_per_s: float | None


def worker_figures(
    name: str,
    role: str,
    track: Track,
    window_s: float,
    *,
    lost: tuple[WorkerHealth, float, str] | None = None,
) -> WorkerFigures:
    """`lost`: why nothing newer is known of it, for how long, and what was said of that."""
    latest, found = track.latest, track.over(window_s)
    if lost is not None:
        health, since_s, error = lost
        return WorkerFigures(name=name, role=role, health=health, since_s=since_s, error=error)
    if latest is None:
        return WorkerFigures(name=name, role=role, health=WorkerHealth.UNKNOWN)
    told, of = latest.samples, [found] if found else []
    steps = buckets(of, "penstock_step_seconds")
    return WorkerFigures(
        name=name,
        role=role,
        health=_health(told),
        queue_s=value(told, "penstock_queued_prompt_seconds"),
        num_running=value(told, "penstock_requests_running"),
        num_waiting=value(told, "penstock_requests_waiting"),
        kv_usage=value(told, "penstock_kv_usage_ratio"),
        hit_share=_hit_share(of),
        gb_per_s=_gb_per_s(of),
        itl_s=steps.quantile(0.5) if role == "decode" else None,
        step_p50_s=steps.quantile(0.5),
        step_p99_s=steps.quantile(0.99),
        tokens_per_s=rate(of, "penstock_computed_tokens_total"),
        moved_bytes_per_s=rate(of, "penstock_transfer_bytes_total"),
        num_failed=_num_failed(of) if of else None,
        version=label(told, BUILD, "version"),
    )


def pair_figures(track: Track, window_s: float) -> list[PairFigures]:
    """Those that moved the most first."""
    latest, found = track.latest, track.over(window_s)
    if latest is None:
        return []
    of = [found] if found else []
    pairs = [labels_of(each) for each in latest.samples.get("penstock_transfer_bytes_total", ())]
    told = [_pair(of, {key: pair.get(key, "") for key in _PAIR}) for pair in pairs]
    return sorted(told, key=lambda each: (-each.moved_bytes_per_s, each.peer, each.direction))


def link_figures(track: Track) -> list[LinkFigures]:
    if track.latest is None:
        return []
    told = track.latest.samples
    per_byte = told.get("penstock_link_seconds_per_byte", {})
    return [
        LinkFigures(
            labels_of(text).get("peer", ""),
            setup_s,
            share(1e-9, per_byte.get(text, 0.0)),
        )
        for text, setup_s in sorted(told.get("penstock_link_setup_seconds", {}).items())
    ]


def _health(told: Samples) -> WorkerHealth:
    if value(told, "penstock_worker_draining"):
        return WorkerHealth.DRAINING
    is_serving = value(told, "penstock_worker_serving")
    return WorkerHealth.SERVING if is_serving else WorkerHealth.NOT_SERVING


def _hit_share(of: list[Difference]) -> float | None:
    """Each token drawn but the first costs one computed: what is left was of prompts."""
    reused = increase(of, "penstock_reused_tokens_total")
    computed = increase(of, "penstock_computed_tokens_total")
    prompts = max(0.0, computed - increase(of, "penstock_sampled_tokens_total"))
    return share(reused, reused + prompts)


def _gb_per_s(of: list[Difference], **pair: str) -> float | None:
    seconds = increase(of, "penstock_transfer_seconds_sum", **pair)
    return share(increase(of, "penstock_transfer_bytes_total", **pair) / 1e9, seconds)


def _num_failed(of: list[Difference], **pair: str) -> float:
    name = "penstock_transfer_failures_total"
    return increase(of, name, **pair) - increase(of, name, reason="cancelled", **pair)


def _pair(of: list[Difference], pair: dict[str, str]) -> PairFigures:
    writes = buckets(of, "penstock_transfer_seconds", **pair)
    return PairFigures(
        peer=pair["peer"],
        direction=pair["direction"],
        transport=pair["transport"],
        gb_per_s=_gb_per_s(of, **pair),
        mean_s=writes.mean,
        p99_s=writes.quantile(0.99),
        moved_bytes_per_s=rate(of, "penstock_transfer_bytes_total", **pair) or 0.0,
        num_transfers=writes.num,
        num_failed=_num_failed(of, **pair),
    )
