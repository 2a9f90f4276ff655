"""The decision: how many workers of each role there should be. Pure: what is observed, and what was
decided before, give what is wanted and why.

More are asked for when what came lately would have been too much for those that there are, for a
minute where one knows what is usual; fewer stay only when fewer would have been enough for a
while. It never kills: it wants fewer, and who goes drains.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.types import Role
from deploy.planner.direction import NO_DIRECTIONS, Counts, Directions
from deploy.planner.observation import Observation
from deploy.planner.settings import Bounds, PlannerSettings
from deploy.planner.sizing import Sizing, all_caches, as_cached_lately
from deploy.planner.stretch import Stretch, pace, stretch
from simulator.setting import Setting

_LEAST_EFFICIENCY = 0.05  # of caches
_LEAST_REQUESTS = 10  # of fewer nothing can be told
_SLACK_S = 30.0  # looks come at intervals
_LEEWAY = 0.02  # of the requests: so much worse than the goal before anything is done
_SURE_S = 60.0  # so long more must have been needed, where one knows what is usual
_SIZING_S = 60.0  # between two looks at fewer
_BUSY_S = 1.0  # of prompts that wait, a worker
_STRAIN_STEP, _MOST_STRAIN = 1.1, 2.0
_STRAIN_S = 3600.0  # in which what was learned of it fades to 1 / e


@dataclass(frozen=True, slots=True)
class Need:
    """Holds what one look found."""

    at_s: float
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerState:
    directions: Directions = NO_DIRECTIONS
    needs: tuple[Need, ...] = ()  # of the last while
    changed_s: float = -math.inf  # when anything was last wanted otherwise
    looked_s: float = -math.inf
    sized_s: float = -math.inf  # when fewer were last considered
    strain: float = 1.0  # times as much work as the rehearsal believes
    setting: Setting | None = None  # as last known


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingDecision:
    counts: Counts
    num_flips: int  # decode workers that become prefill workers; below 0 the other way
    sentences: tuple[str, ...]  # why
    terms: dict[str, float]

    def explain(self) -> str:
        return " ".join(self.sentences)


def decide(
    observation: Observation, state: PlannerState, settings: PlannerSettings, bounds: Bounds
) -> tuple[SizingDecision, PlannerState]:
    """Called every few seconds."""
    now_s = observation.now_s
    now = Counts(observation.prefill.num_there, observation.decode.num_there)
    seen = stretch(observation.requests, observation.begin_s, now_s, settings.window_s)
    observation = replace(observation, begin_s=seen.begin_s, requests=seen.requests)
    state = replace(state, setting=observation.setting or state.setting)
    look = _look(observation, state, settings, bounds, now, seen)
    needs = (*state.needs, Need(now_s, look.need))
    needs = tuple(each for each in needs if each.at_s >= now_s - settings.calm_s)
    target, sentence = _target(observation, now, look.need, needs, settings)
    # Who waits at a pool that is cold is no load that swings to and fro.
    is_cold = not now.decode and observation.num_waiting > 0
    hold_s = 0.0 if is_cold else settings.hold_s
    allowed = state.directions.clip(now, target, now_s, hold_s)
    sentences = [*look.sentences, sentence]
    if seen.num_left_out:
        sentences.insert(0, f"Bursts are left out: {seen.num_left_out} requests more than usual.")
    if allowed != target:
        sentences.append(f"Only {allowed} for now: the direction was reversed lately.")
    flips = _flips(now, allowed, observation) if bounds.may_flip else 0
    if flips:
        sentences.append(f"{abs(flips)} of them by changing a role, which is quicker than a start.")
    decision = SizingDecision(
        counts=allowed, num_flips=flips, sentences=tuple(sentences), terms=look.terms
    )
    return decision, replace(
        state,
        directions=state.directions.after(now, allowed, now_s),
        needs=needs,
        changed_s=state.changed_s if allowed == now else now_s,
        looked_s=now_s,
        strain=look.strain,
        sized_s=look.sized_s,
    )


@dataclass(frozen=True, slots=True)
class _Look:
    need: Counts
    sentences: tuple[str, ...]
    terms: dict[str, float]
    strain: float = 1.0
    sized_s: float = -math.inf


def _look(
    seen: Observation,
    state: PlannerState,
    settings: PlannerSettings,
    bounds: Bounds,
    now: Counts,
    looked: Stretch,
) -> _Look:
    least = Counts(*(bounds.of(role)[0] for role in Role))
    if not seen.requests and not seen.num_waiting:
        return _Look(least, ("Nothing came lately.",), {}, state.strain)
    if state.setting is None or len(seen.requests) < _LEAST_REQUESTS:
        kept = Counts(max(now.prefill, least.prefill), max(1, now.decode, least.decode))
        return _Look(kept, ("Too little is known yet.",), {}, state.strain)
    requests, cache_tokens = as_cached_lately(seen.requests, seen.now_s - settings.window_s)
    serving = Counts(seen.prefill.num_serving, seen.decode.num_serving)
    efficiency = cache_tokens / max(1, all_caches(state.setting, serving))
    sizing = Sizing(
        requests,
        state.setting,
        bounds,
        settings.goal,
        cache_tokens,
        min(max(_LEAST_EFFICIENCY, efficiency), 1.0),
    )
    strain = _strained(seen, state, settings, sizing, now, has_bursts=looked.num_left_out > 0)
    faster = strain * pace(seen.requests, seen.begin_s, seen.now_s, settings.window_s)
    suffices = sizing.suffices(now, faster, _LEEWAY)
    is_due = not (suffices and state.needs and seen.now_s < state.sized_s + _SIZING_S)
    if is_due:
        need = sizing.cheapest(now, faster * _room(settings, looked.steady_s))
    else:
        need = state.needs[-1].counts
    if not suffices:
        need = _no_fewer(now, need)
    elif need.num >= now.num:
        need = now
    sentences = [
        f"{len(seen.requests)} requests in {seen.duration_s:.0f} s: {now}"
        f" {'would have been enough' if suffices else 'would not have been enough'}."
    ]
    if extra := _extra(seen, settings, need):
        need = sizing.bounded(need.prefill + extra, need.decode)
        sentences.append(f"{seen.queue_s:.0f} s of prompts wait: {extra} more to work them off.")
    terms = {
        "requests_s": len(seen.requests) / max(1.0, seen.duration_s),
        "pace": faster / strain,
        "strain": strain,
        "queue_s": seen.queue_s,
        "kv_share": seen.kv_share,
        "good_share": seen.num_good / max(1, seen.num_judged),
        "most_bad_share": sizing.bad_share,
    }
    return _Look(need, tuple(sentences), terms, strain, seen.now_s if is_due else state.sized_s)


def _target(
    seen: Observation,
    now: Counts,
    need: Counts,
    needs: Sequence[Need],
    settings: PlannerSettings,
) -> tuple[Counts, str]:
    """Decides who comes and goes: whoever comes has been needed for a minute; whoever goes is sure
    not to be, by a whole window and a calm while."""
    if need.num >= now.num:
        # Before a whole window is known, a load cannot be told from a burst: it is served at once.
        is_usual = now.decode and seen.is_full and needs[0].at_s <= seen.now_s - _SURE_S
        if need != now and is_usual:
            lately = [each.counts for each in needs if each.at_s >= seen.now_s - _SURE_S]
            need = min(lately, key=lambda counts: counts.num)
            if need.num < now.num or now in lately:
                return now, "More may be wanted, but were not for a minute yet."
        is_sure = seen.is_full and not _is_starting(seen)
        grown = need if is_sure else Counts(*map(max, now, need))
        return grown, f"{grown} wanted." if grown != now else "They stay."
    fewer = f"{need} may be enough"
    if seen.now_s - needs[0].at_s < settings.calm_s - _SLACK_S:
        return now, f"{fewer}, but it is not known for how long."
    if seen.queue_s > _BUSY_S * now.num:
        return now, f"{fewer} once {seen.queue_s:.0f} s of prompts are worked off."
    most = max((each.counts for each in needs), key=lambda counts: counts.num)
    if most.num >= now.num:
        return now, f"{fewer}, but were not all the time."
    return most, f"{most} were enough for {settings.calm_s:.0f} s."


def _room(settings: PlannerSettings, steady_s: float) -> float:
    """Sizes head-room; what has stayed as fast for long is likelier to go on so: it takes less."""
    return 1.0 + (settings.head_room - 1.0) * min(1.0, settings.window_s / max(1.0, steady_s))


def _is_starting(seen: Observation) -> bool:
    return bool(seen.prefill.num_starting or seen.decode.num_starting)


def _no_fewer(now: Counts, need: Counts) -> Counts:
    """Keeps as many workers as there are where they do not suffice in their roles, though fewer
    would in others."""
    num_left = max(0, now.num - need.num)
    grown = need.prefill + num_left if need.prefill <= now.prefill else need.prefill
    return Counts(grown, need.decode + num_left - (grown - need.prefill))


def _extra(seen: Observation, settings: PlannerSettings, need: Counts) -> int:
    """Workers beyond the need that work off what waits; at most half as many again."""
    spare = (1.0 - 1.0 / settings.head_room) * need.num + 0.2 * need.num
    wanted = math.ceil(seen.queue_s / settings.catch_up_s - spare)
    return max(0, min(wanted, need.num // 2))


def _strained(
    seen: Observation,
    state: PlannerState,
    settings: PlannerSettings,
    sizing: Sizing,
    now: Counts,
    *,
    has_bursts: bool,
) -> float:
    """Has what is seen count for more than what is rehearsed: where targets are missed by a size
    that should do, everything weighs more from then on."""
    fades = math.exp(-max(0.0, seen.now_s - state.looked_s) / _STRAIN_S)
    strain = 1.0 + (state.strain - 1.0) * fades
    is_settled = seen.now_s >= state.changed_s + settings.window_s
    # Those of bursts are late whatever there is: nothing is learned of them.
    if has_bursts or not is_settled or _is_starting(seen):
        return strain
    expected = 1.0 - sizing.bad_share
    sigma = math.sqrt(max(1.0, seen.num_judged * expected * (1.0 - expected)))
    missing = expected * seen.num_judged - seen.num_good
    if missing > 2.0 * sigma and sizing.suffices(now, strain):
        return min(_MOST_STRAIN, strain * _STRAIN_STEP)
    return strain


def _flips(now: Counts, then: Counts, seen: Observation) -> int:
    """A role that grows takes from one that shrinks, as far as that one serves."""
    prefill, decode = then.prefill - now.prefill, then.decode - now.decode
    if prefill > 0 > decode:
        return min(prefill, -decode, seen.decode.num_serving)
    if decode > 0 > prefill:
        return -min(decode, -prefill, seen.prefill.num_serving)
    return 0
