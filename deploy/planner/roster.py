"""Lists who is there of each pool, and what is to be done so that as many are as are wanted. Pure.

Nobody is killed: who is too much drains, and what was set aside for it is given back when it is at
rest. Until then it can be told to serve again, which is quicker than any start.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, assert_never

from cluster.types import Role
from deploy.placement import Wanted
from deploy.planner.direction import Counts
from deploy.planner.settings import MAX_WORKERS, Bounds
from router.pool import MemberStatus
from simulator.elastic import Staff


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPool:
    """Workers that are alike, called NAME-0, NAME-1, ..."""

    name: str
    role: Role
    least: int
    most: int
    first: str  # as JSON: what NAME-0 wants of a machine; the others differ in their name

    @property
    def workers(self) -> list[str]:
        """All that it may have."""
        return [f"{self.name}-{index}" for index in range(self.most)]

    @property
    def sample(self) -> Wanted:
        return Wanted.from_json(self.first)


class WorkerStage(StrEnum):
    STARTING = "starting"  # or away, and being started again
    SERVING = "serving"
    LEAVING = "leaving"  # told by the planner to drain
    AT_REST = "at rest"  # the same, and nothing is in progress there any more
    OUT = "out of service"  # it drains, and somebody else told it to


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """One worker for which something is set aside."""

    name: str
    pool: PlannedPool
    stage: WorkerStage
    num_in_flight: int = 0

    @property
    def is_there(self) -> bool:
        """It serves, or will."""
        return self.stage in (WorkerStage.STARTING, WorkerStage.SERVING)


class Acts(NamedTuple):
    """Names of workers; what is released has nothing in progress."""

    undrain: tuple[str, ...] = ()
    place: tuple[Wanted, ...] = ()
    drain: tuple[str, ...] = ()
    release: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Tells in words what is done; empty: nothing."""
        return "; ".join(self.sentences)

    @property
    def sentences(self) -> list[str]:
        said = {
            "serve again": self.undrain,
            "are placed": [each.name for each in self.place],
            "drain": self.drain,
            "are released": self.release,
        }
        return [f"{', '.join(names)} {verb}" for verb, names in said.items() if names]


def bounds_of(pools: Sequence[PlannedPool]) -> Bounds:
    """Adds up the bounds of all pools of a role. No role is changed: a worker keeps what its pool
    sets aside for it, and what is started again is what its pool says."""

    prefill, decode = ([each for each in pools if each.role is role] for role in Role)
    return Bounds(
        least_prefill=min(MAX_WORKERS, sum(pool.least for pool in prefill)),
        most_prefill=min(MAX_WORKERS, sum(pool.most for pool in prefill)),
        least_decode=min(MAX_WORKERS, sum(pool.least for pool in decode)),
        most_decode=min(MAX_WORKERS, sum(pool.most for pool in decode)),
        may_flip=False,
    )


def posts(
    pools: Sequence[PlannedPool],
    placed: Collection[str],
    statuses: Mapping[str, MemberStatus],
    leaving: Collection[str],
) -> list[Post]:
    """`placed`: for whom something is set aside; `leaving`: whom the planner told to drain."""
    return [
        Post(
            name=name,
            pool=pool,
            stage=_stage(statuses.get(name), is_leaving=name in leaving),
            num_in_flight=_num_in_flight(statuses.get(name)),
        )
        for pool in pools
        for name in pool.workers
        if name in placed
    ]


def _stage(status: MemberStatus | None, *, is_leaving: bool) -> WorkerStage:
    if status is None:  # its process has ended, or not begun
        return WorkerStage.AT_REST if is_leaving else WorkerStage.STARTING
    report = status.report
    if report.is_draining:
        # One that is to end is none of ours: whoever ends it gives back what is set aside.
        if not is_leaving or (report.drain is not None and report.drain.ends):
            return WorkerStage.OUT
        return WorkerStage.LEAVING if _num_in_flight(status) else WorkerStage.AT_REST
    return WorkerStage.SERVING if status.refusal is None else WorkerStage.STARTING


def _num_in_flight(status: MemberStatus | None) -> int:
    return max(status.num_in_flight, status.report.num_open_calls) if status else 0


def staff(roster: Sequence[Post], role: Role) -> Staff:
    stages = Counter(post.stage for post in roster if post.pool.role is role)
    return Staff(
        num_serving=stages[WorkerStage.SERVING],
        num_starting=stages[WorkerStage.STARTING],
        num_draining=stages[WorkerStage.LEAVING]
        + stages[WorkerStage.AT_REST]
        + stages[WorkerStage.OUT],
    )


def leaving_of(roster: Sequence[Post]) -> list[str]:
    """Names who still goes: one that was started again serves."""
    return [
        post.name for post in roster if post.stage in (WorkerStage.LEAVING, WorkerStage.AT_REST)
    ]


def acts(
    pools: Sequence[PlannedPool], placed: Collection[str], roster: Sequence[Post], wanted: Counts
) -> Acts:
    """Says what brings the roster nearer to what is wanted."""
    done = [_acts_of(role, pools, placed, roster, wanted) for role in Role]
    parts = (sum(found, ()) for found in zip(*done, strict=True))
    return Acts(*parts)


def _acts_of(
    role: Role,
    pools: Sequence[PlannedPool],
    placed: Collection[str],
    roster: Sequence[Post],
    wanted: Counts,
) -> Acts:
    mine = [post for post in roster if post.pool.role is role]
    at_rest = [post.name for post in mine if post.stage is WorkerStage.AT_REST]
    num_wanted = _num_of(wanted, role)
    num_more = num_wanted - sum(post.is_there for post in mine)
    if num_more > 0:
        back = [post.name for post in _busiest_first(mine)][:num_more]
        new = list(_new(role, pools, placed))[: num_more - len(back)]
        released = [name for name in at_rest if name not in back]
        return Acts(undrain=tuple(back), place=tuple(new), release=tuple(released))
    gone = list(_superfluous(mine))[:-num_more] if num_more else []
    if role is Role.DECODE and not num_wanted and any(post.num_in_flight for post in mine):
        gone = []  # what is in progress there could go on nowhere else
    return Acts(
        drain=tuple(post.name for post in gone if post.stage is WorkerStage.SERVING),
        release=(*at_rest, *(post.name for post in gone if post.stage is WorkerStage.STARTING)),
    )


def _num_of(counts: Counts, role: Role) -> int:
    match role:
        case Role.PREFILL:
            return counts.prefill
        case Role.DECODE:
            return counts.decode
    assert_never(role)


def _busiest_first(mine: Sequence[Post]) -> list[Post]:
    """Orders those that leave: who still has something to do has it cached."""
    leaving = [post for post in mine if post.stage in (WorkerStage.LEAVING, WorkerStage.AT_REST)]
    return sorted(leaving, key=lambda post: -post.num_in_flight)


def _new(role: Role, pools: Sequence[PlannedPool], placed: Collection[str]) -> Iterator[Wanted]:
    """Pools that have fewer than they should first, then in the order of the file."""
    mine = [pool for pool in pools if pool.role is role]
    short = {pool.name: pool.least - len(set(pool.workers) & set(placed)) for pool in mine}
    free = {pool.name: [name for name in pool.workers if name not in placed] for pool in mine}
    for pool in mine:
        yield from map(pool.sample.named, free[pool.name][: max(0, short[pool.name])])
    for pool in mine:
        yield from map(pool.sample.named, free[pool.name][max(0, short[pool.name]) :])


def _superfluous(mine: Sequence[Post]) -> Iterator[Post]:
    """Gives who may go, those first that would be missed least: who does not serve yet, who has
    least to do, the youngest. Each pool keeps as many as it must."""
    numbers = Counter(post.pool.name for post in mine if post.is_there)
    there = [(place, post) for place, post in enumerate(mine) if post.is_there]
    there.sort(
        key=lambda each: (each[1].stage is WorkerStage.SERVING, each[1].num_in_flight, -each[0])
    )
    for _, post in there:
        if numbers[post.pool.name] > post.pool.least:
            numbers[post.pool.name] -= 1
            yield post
