"""A cluster on a Ray that only keeps account: who serves, who was stopped and placed, and what
`Rolling` asks of routers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy import rolling
from deploy.placed import PlacedState
from deploy.placement import Group, Machine, Wanted
from deploy.plan import Part


@dataclass(slots=True, eq=False)
class FakeRolling:
    wanted: Sequence[Wanted]
    broken: set[str] = field(default_factory=set)  # that do not serve
    mended: bool = True  # whether they do once they are placed anew
    happened: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    looks_until_free: int = 0  # at the machine of whom was stopped
    near: dict[str, str | None] = field(default_factory=dict)

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("stop", "states", "until_ready", "serving_now", "until_any_serves"):
            monkeypatch.setattr(rolling, name, getattr(self, name))
        monkeypatch.setattr(rolling, "until_served", self.until_served)

    def roll(self, *names: str) -> None:
        ours: Any = self
        made = rolling.Rolling(ours, self.wanted, timeout_s=1.0, say=self.said.append)
        by_name = {each.name: each for each in self.wanted}
        for name in names:
            group = Group(
                group_id="g", cluster="lab", name=name, digest="", machine_id=f"at {name}"
            )
            made.replace(by_name[name], group)

    # -- what it is instead of ---------------------------------------------------------------

    def stop(self, ray: Any, groups: Sequence[Group], *, say: Any) -> None:
        self.happened += [f"stop {group.name}" for group in groups]
        self.broken |= {group.name for group in groups}

    def machines(self) -> list[Machine]:
        """Of each worker its own, which is full for some looks."""
        amount = {"CPU": 64.0, "GPU": 8.0, "prefill": 8.0}
        self.looks_until_free -= 1
        free = {} if self.looks_until_free >= 0 else amount
        if self.happened and not free:
            self.happened.append("is full")
        labels = {"zone": "a", "rack": "r1"}
        return [
            Machine(
                machine_id=f"at {each.name}", address="", labels=labels, total=amount, free=free
            )
            for each in self.wanted
        ]

    def place(self, one: Wanted, *, near: str | None) -> None:
        self.happened.append(f"place {one.name}")
        self.near[one.name] = near
        if self.mended:
            self.broken.discard(one.name)

    def until_ready(self, ray: Any, wanted: Sequence[Wanted], **_: Any) -> None:
        self.happened += [f"ready {each.name}" for each in wanted]

    def states(self, ray: Any, cluster: str, names: Sequence[str]) -> dict[str, PlacedState]:
        return {
            name: PlacedState(order="", host="", machine="", internal=f"door {name}")
            for name in names
            if name not in self.broken
        }

    def serving_now(self, doors: Sequence[str], secrets_file: Path) -> dict[str, set[str]]:
        return {door: set(self.serving) for door in doors}

    def until_any_serves(self, doors: Sequence[str], workers: Collection[str], *_: Any) -> bool:
        return bool(self.serving & set(workers))

    def until_served(self, doors: Sequence[str], workers: Collection[str], *_: Any) -> None:
        assert set(workers) <= self.serving
        self.happened.append(f"{', '.join(sorted(workers))} served by {len(doors)}")

    @property
    def serving(self) -> set[str]:
        workers = {each.name for each in self.wanted if each.order.part is not Part.ROUTER}
        return workers - self.broken
