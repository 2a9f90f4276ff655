"""The walk of one request through the router: which functions of which files it enters.

A *stay* is a run of calls that all enter the same file; a *return* is a stay in a file that the
walk has been in before. What a function does after a call of it has come back is the same stay's.
"""

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import CodeType, FrameType

ROUTER = Path(__file__).parents[2] / "router"


@dataclass(frozen=True, slots=True)
class Entered:
    file: str
    name: str


@dataclass(slots=True, eq=False)
class Walk:
    """`entered`: in order, every function of `router/` that ran for the request."""

    entered: list[Entered] = field(default_factory=list)

    @property
    def stays(self) -> list[tuple[str, list[str]]]:
        """The files as the walk comes to them, and the functions that it enters there."""
        by_file = groupby(self.entered, key=lambda each: each.file)
        return [(file, [each.name for each in there]) for file, there in by_file]

    @property
    def num_files(self) -> int:
        return len({each.file for each in self.entered})

    @property
    def num_returns(self) -> int:
        return len(self.stays) - self.num_files

    @property
    def num_names(self) -> int:
        return len(set(self.entered))

    def __str__(self) -> str:
        lines = [f"{file:32} {' '.join(dict.fromkeys(names))}" for file, names in self.stays]
        total = f"{len(self.stays)} stays in {self.num_files} files, {self.num_returns} returns"
        return "\n".join([*lines, f"{total}, {self.num_names} names"])


@contextmanager
def walked(begins: CodeType) -> Iterator[Walk]:
    """Follows the one request that is served meanwhile: all that runs in the task that enters
    `begins`, and in threads."""
    walk, seen = Walk(), set[FrameType]()
    by_task: dict[asyncio.Task[object] | None, list[Entered]] = {}
    mine: list[asyncio.Task[object] | None] = [None]
    main = threading.get_ident()

    def follow(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        path = Path(code.co_filename)
        if event != "call" or ROUTER not in path.parents or frame in seen:
            return  # a coroutine that goes on is no call
        seen.add(frame)
        if code.co_name.startswith("<"):
            return
        entered = Entered(str(path.relative_to(ROUTER)), code.co_qualname)
        if threading.get_ident() != main:
            task = mine[0]
        else:
            task = _current_task()
            if code is begins:
                mine[0] = task
        by_task.setdefault(task, []).append(entered)

    threading.setprofile(follow)
    sys.setprofile(follow)
    try:
        yield walk
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
        walk.entered += by_task.get(mine[0], [])


def _current_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
