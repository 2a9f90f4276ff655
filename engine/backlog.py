"""Sums what is queued on a worker in predicted seconds, by when it is due. Pure."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

from cluster.types import MAX_BACKLOG_POINTS, DecodeCost, PrefillCost
from engine.batch import Batch
from engine.sequence import Sequence

Backlog = tuple[tuple[float, float], ...]  # as in a load report


class Work(NamedTuple):
    """A prompt, or what is left of it."""

    due_s: float  # from now
    num_new: int  # tokens to be computed
    num_context: int  # tokens before them


def backlog(
    queue: Iterable[Work],
    cost: PrefillCost,
    *,
    step_tokens: int,
    step_s: float,
    running_s: float,
    beside_s: float = 0.0,
) -> Backlog:
    """The points of a load report. `queue` is in the order in which it will be computed, in
    steps of at most `step_tokens` tokens and about `step_s` seconds, beside which answers are
    decoded for `beside_s`; `running_s` is left of the step that runs."""
    points = [(0.0, running_s)]
    latest_s = prompts_s = 0.0
    num_tokens = 0
    for work in queue:
        due_s, num_new, _ = work
        num_tokens += num_new
        prompts_s += _prompt_s(work, cost, step_tokens, step_s)
        num_steps = -(-num_tokens // step_tokens)
        if prompts_s > num_steps * step_s:
            num_steps = int(prompts_s / step_s) + 1
        total_s = running_s + prompts_s + (cost.c0 + beside_s) * num_steps
        if due_s > latest_s:
            latest_s = due_s
            points.append((due_s, total_s))
        else:
            points[-1] = (latest_s, total_s)
    full_s = min(step_s, cost.seconds(step_tokens, 0)) + beside_s
    return _thinned(_with_shared_step(points, full_s)) if points[-1][1] else ()


def running_s(batch: Batch | None, cost: PrefillCost, *, beside_s: float, so_far_s: float) -> float:
    """Predicts what is left of the step that runs, if it computes prompts."""
    prompts = batch.prompts if batch is not None else []
    if not prompts:
        return 0.0
    predicted_s = cost.c0 + sum(cost.seconds(*row) - cost.c0 for row in prompts)
    return max(0.0, predicted_s + beside_s - so_far_s)


def decoding_s(active: Iterable[Sequence], cost: DecodeCost) -> float:
    """Predicts what the answers that are decoded in a step cost it."""
    contexts = [sequence.num_computed for sequence in active if sequence.has_begun]
    return cost.seconds(sum(contexts), len(contexts)) if contexts else 0.0


def _with_shared_step(points: list[tuple[float, float]], full_s: float) -> Backlog:
    """Fills whatever a prompt leaves of its last step with those that are due after it, and
    its first token comes when that step ends."""
    all_s = points[-1][1]
    return tuple((due_s, min(work_s + full_s, all_s)) for due_s, work_s in points)


def _prompt_s(work: Work, cost: PrefillCost, step_tokens: int, step_s: float) -> float:
    """Predicts a prompt's seconds without c0, which several prompts in one step share."""
    new, context = work.num_new, work.num_context
    seconds = (cost.c1 + cost.c3 * context) * new + cost.c2 * context
    middle = context + new / 2
    slope, context_s = cost.c1 + cost.c3 * middle, cost.c2 * middle
    if slope * new + context_s > step_s:
        # As the batcher cuts it: what fits, or what is worth its context.
        step_tokens = min(step_tokens, max(1, int(max(step_s - context_s, context_s) / slope)))
    if new > step_tokens:  # chunks after the first have those before them as context
        num_chunks = -(-new // step_tokens)
        seconds += cost.c3 * new * (new - step_tokens) / 2
        seconds += cost.c2 * (num_chunks - 1) * (context + step_tokens * num_chunks / 2)
    return seconds


def _thinned(points: Backlog) -> Backlog:
    """The first, the last, and those in between that split the work evenly; where large prompts
    leave some over, those of the largest."""
    most, last = MAX_BACKLOG_POINTS, len(points) - 1
    if last < most:
        return points
    work_s = [seconds for _, seconds in points]
    share_s = (work_s[-1] - work_s[0]) / (most - 1)
    even = (bisect_left(work_s, work_s[0] + share_s * i, 0, last) for i in range(1, most - 1))
    kept = {0, last, *even}
    if len(kept) < most:
        others = sorted(set(range(last)) - kept, key=lambda i: work_s[i - 1] - work_s[i])
        kept.update(others[: most - len(kept)])
    return tuple(points[index] for index in sorted(kept))
